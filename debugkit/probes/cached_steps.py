"""Scores of a row read with a cache, against those of the same row read at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from debugkit.errors import Unavailable, one_line
from debugkit.evidence import Cost
from debugkit.probes.eval_passes import EvalPasses
from debugkit.probes.token_ids import TokenIds
from debugkit.probes.training_step import TrainingStep
from debugkit.sandbox import Sandbox
from debugkit.target import Target
from debugkit.tokens.cached import NoCache, Pair, by_generate, by_hand, by_length, furthest
from debugkit.tokens.call_rows import CallRows
from debugkit.tracing.source import is_library_class

_LONGEST = 32
_STEPS = 4


@dataclass(frozen=True, eq=False)
class CachedSteps:
    """What a cache changes.

    Attributes:
        read: how many tokens were read before the cache was used.
        steps: how many tokens were read one by one with it.
        difference: the largest difference between the scores of the two, relative to their spread.
        without: the same for the first part alone, which uses no cache: what rounding and length explain.
        length_matters: whether these scores depend on what follows when read as in training, too.
        first: the position of the first difference above ``tolerance``; ``None`` without one.
        tolerance: the difference that rounding may explain at the scores' precision.
        generate: whether ``generate`` was used, not the model's own cache.
        own: whether the model is the user's, not a library's.
    """

    cost: ClassVar[Cost] = "backward"
    read: int
    steps: int
    difference: float
    without: float
    length_matters: bool
    first: int | None
    tolerance: float
    generate: bool
    own: bool

    @staticmethod
    def collect(
        target: Target, sandbox: Sandbox, step: TrainingStep, passes: EvalPasses | None, ids: TokenIds | None
    ) -> CachedSteps:
        """Read up to 32 tokens of one row at once, and again with the last ones one by one.

        Raises:
            Unavailable: the model keeps no cache, or no row is long enough.
        """
        row, labels = _row(target, step, ids)
        if passes is None or passes.gap > passes.tolerance:
            raise Unavailable("two passes in eval mode differ, so that no effect of a cache can be told")
        model: Any = target.model
        generates = callable(getattr(model, "generate", None)) and hasattr(model, "config")
        encodes = bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))
        with sandbox.probe(), torch.no_grad():
            model.eval()
            try:
                source = row if encodes else None
                text = _decoded(model, row, labels) if encodes else row
                prefix = text.shape[1] - _STEPS
                pairs = (
                    by_generate(model, text, prefix, source) if generates else by_hand(model, text, prefix)
                )
                tolerance = _tolerance(pairs)
                without = furthest([pair for pair in pairs if not pair.cached])
                length_matters = without > tolerance
                if length_matters and generates:
                    length_matters = furthest([by_length(model, text, prefix, source)]) > tolerance
            except NoCache as error:
                raise Unavailable(str(error)) from error
            except Exception as error:  # generation asks more of a model than training, in any way
                raise Unavailable(
                    f"the model does not generate from token ids alone: {one_line(error, 120)}"
                ) from error
        cached = [pair for pair in pairs if pair.cached]
        return CachedSteps(
            read=prefix,
            steps=len(cached),
            difference=furthest(cached),
            without=without,
            length_matters=length_matters,
            first=next((pair.position for pair in cached if furthest([pair]) > tolerance), None),
            tolerance=tolerance,
            generate=generates,
            own=not is_library_class(type(model)),
        )


def _tolerance(pairs: list[Pair]) -> float:
    half = any(pair.full.dtype in (torch.bfloat16, torch.float16) for pair in pairs)
    return 5e-2 if half else 1e-3


def _row(
    target: Target, step: TrainingStep, ids: TokenIds | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Token ids ``[1, length]`` of one row, and its labels."""
    rows = (
        None
        if step.root_call is None
        else CallRows.of(target.model, *step.root_call, None if ids is None else ids.pad)
    )
    if rows is None or rows.sequences.ndim != 2:
        raise Unavailable("the step gives the model no token ids")
    number = rows.fullest()
    if number is None or int(rows.content[number].sum()) < _STEPS + 2:
        raise Unavailable(f"no row has {_STEPS + 2} tokens in one stretch")
    content = rows.content[number].nonzero().flatten()
    found = rows.sequences[number : number + 1, int(content[0]) : int(content[-1]) + 1][:, :_LONGEST].detach()
    labels = rows.kwargs.get("labels")
    whole = isinstance(labels, torch.Tensor) and labels.ndim == 2 and not labels.is_floating_point()
    return found, labels[number : number + 1].detach() if whole and labels is not None else None


def _decoded(model: Any, source: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
    """What a decoder is to write: the labels behind its start token, or the source where there are none."""
    start = getattr(model.config, "decoder_start_token_id", None)
    start = getattr(model.config, "bos_token_id", None) if start is None else start
    if not isinstance(start, int):
        raise NoCache("the configuration names no token that the decoder starts with")
    text = source if labels is None else labels[:, : int((labels[0] >= 0).sum())]
    if text.shape[1] < _STEPS:
        raise NoCache("no labels are long enough")
    first = torch.full_like(text[:, :1], start)
    return torch.cat([first, text[:, : _LONGEST - 1]], 1)
