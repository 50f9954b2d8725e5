"""Where attention goes in one row: per layer and head, on padding, on itself, on the first token, and how spread it is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from debugkit.data.batch import tensors
from debugkit.errors import Unavailable
from debugkit.evidence import Cost
from debugkit.probes.sequence_row import SequenceRow, is_attention
from debugkit.sandbox import Sandbox
from debugkit.target import Target
from debugkit.tracing.attention_backend import attention_backend, takes_backends
from debugkit.tracing.program import Program
from debugkit.tracing.source import is_library_class

_VISIBLE = 4


@dataclass(frozen=True)
class LayerAttention:
    """The attention of one layer, from the content of a row.

    Attributes:
        name: the module, or the output, that gives it.
        on_pads: the largest share of a query's attention that goes to padding.
        entropy: by head, the mean entropy of a query's attention relative to the largest possible; ``None`` where no
            query sees enough.
        on_self: by head, the mean share on the query's own position.
        on_edge: by head, the mean share on the first and the last token of the content, where attention sinks are.
    """

    name: str
    on_pads: float
    entropy: tuple[float | None, ...]
    on_self: tuple[float, ...]
    on_edge: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class AttentionMaps:
    """The attention of all layers that give their weights.

    Attributes:
        layers: in order.
        pads: how many positions of padding the row has.
        tokens: how many others.
        marked: the parameter that tells the model what is padding; ``None`` where nothing does.
        own: whether the model is the user's, not a library's.
        tolerance: the share on padding that a mask of finite values may leave.
    """

    cost: ClassVar[Cost] = "backward"
    layers: tuple[LayerAttention, ...]
    pads: int
    tokens: int
    marked: str | None
    own: bool
    tolerance: float

    @property
    def on_pads(self) -> LayerAttention | None:
        """The layer that gives padding the most although it is marked; ``None`` where none does."""
        worst = max(self.layers, key=lambda layer: layer.on_pads)
        return worst if self.marked is not None and worst.on_pads > self.tolerance else None

    @staticmethod
    def collect(target: Target, sandbox: Sandbox, row: SequenceRow) -> AttentionMaps:
        """Read what modules gave already, or ask a model of transformers for its weights in one more pass.

        Raises:
            Unavailable: nothing gives attention weights.
        """
        model: Any = target.model
        maps = row.maps
        asked = not maps and takes_backends(model)
        if asked:
            with sandbox.probe(), torch.no_grad(), attention_backend(model, "eager"):
                model.eval()
                try:
                    with Program(target).precision():
                        maps = _asked(model, row)
                except Exception as error:  # a model may refuse another attention in any way
                    raise Unavailable("the model gives no attention weights") from error
        maps = {name: t for name, t in maps.items() if "decoder" not in name and "cross" not in name}
        if not maps:
            raise Unavailable("the model gives no attention weights")
        half = any(t.dtype in (torch.bfloat16, torch.float16) for t in maps.values())
        return AttentionMaps(
            layers=tuple(_layer(name, weights, row.call.content) for name, weights in maps.items()),
            pads=int((~row.call.content).sum()),
            tokens=int(row.call.content.sum()),
            marked=row.call.marked,
            own=not is_library_class(type(model)),
            tolerance=1e-3 if half or target.autocast_dtype is not None else 1e-6,
        )


def _asked(model: Any, row: SequenceRow) -> dict[str, torch.Tensor]:
    outputs = row.call.on(model, output_attentions=True, return_dict=True)
    return {
        path: t.detach()
        for path, t in tensors(outputs)
        if "attentions" in path and is_attention(t, row.call.length)
    }


def _layer(name: str, weights: torch.Tensor, content: torch.Tensor) -> LayerAttention:
    """What the heads of ``[..., length, length]`` do for the queries that are content."""
    length = len(content)
    heads = weights.detach().float().cpu().reshape(-1, length, length)
    queries = content.unsqueeze(0) & (heads.sum(-1) > 0)
    pads = (heads * ~content).sum(-1)[queries]
    places = content.nonzero().flatten()
    edges = [int(places[0]), int(places[-1])]
    causal = not bool(heads.triu(1).any())
    entropy, on_self, on_edge = [], [], []
    for head, seen in zip(heads, queries, strict=True):
        rows = seen.nonzero().flatten()
        mine = head[rows][:, content]
        visible = (rows - places[0] + 1) if causal else torch.full_like(rows, len(places))
        enough = visible >= _VISIBLE
        spread = -(mine * mine.clamp_min(1e-30).log()).sum(-1)
        relative = spread[enough] / visible[enough].float().log()
        entropy.append(float(relative.mean()) if bool(enough.any()) else None)
        on_self.append(float(head[rows, rows].mean()) if len(rows) else math.nan)
        on_edge.append(float(head[rows][:, edges].sum(-1).mean()) if len(rows) else math.nan)
    return LayerAttention(
        name, float(pads.max()) if pads.numel() else 0.0, tuple(entropy), tuple(on_self), tuple(on_edge)
    )
