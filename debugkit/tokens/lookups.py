"""The token ids that a model looks up while it runs, seen from outside, and disturbed where asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from debugkit.loss.losses import LOSSES, bind_loss
from debugkit.tracing.dropout import DROPOUTS
from debugkit.tracing.source import user_location

_WHOLE = (torch.int64, torch.int32)


@dataclass(frozen=True, eq=False)
class Looked:
    """Ids whose vectors a model looked up.

    Attributes:
        ids: ``[rows, length]`` on the CPU; lookups of one step at a time are put side by side.
        calls: the numbers of the lookups that they came from.
        stepwise: whether each call looked up one step.
    """

    ids: torch.Tensor
    calls: tuple[int, ...]
    stepwise: bool = False


class Lookups(TorchFunctionMode):
    """Records lookups (embeddings, one-hot vectors, rows taken from a parameter) while active, without dropout.

    Args:
        disturbed: by call number, at which places ``[rows, length]`` what is looked up is replaced by noise.

    Attributes:
        loss_inputs: the predictions that torch's loss functions took.
        location: the user's source line of the last loss call.
    """

    def __init__(self, disturbed: Mapping[int, torch.Tensor] | None = None) -> None:
        super().__init__()
        self.loss_inputs: list[torch.Tensor] = []
        self.location: str | None = None
        self._disturbed = disturbed or {}
        self._calls: list[tuple[int, torch.Tensor]] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in DROPOUTS and args:
            return args[0]
        if func is F.scaled_dot_product_attention and kwargs.get("dropout_p"):
            kwargs["dropout_p"] = 0.0
        elif func is F.multi_head_attention_forward:
            kwargs["training"] = False
        elif func in LOSSES:
            given = bind_loss(func, args, kwargs).get("input")
            if isinstance(given, torch.Tensor) and given.requires_grad:
                self.loss_inputs.append(given)
                self.location = user_location(outer=True)
        result = func(*args, **kwargs)
        found = _lookup(func, args, kwargs)
        if found is None or not isinstance(result, torch.Tensor):
            return result
        table, ids = found
        number = len(self._calls)
        self._calls.append((table, ids.detach().cpu()))
        places = self._disturbed.get(number)
        return result if places is None else _with_noise(result, places.to(result.device), number)

    def looked(self) -> list[Looked]:
        """What was looked up, once per different ids."""
        found = [Looked(ids, (number,)) for number, (_, ids) in enumerate(self._calls) if ids.ndim == 2]
        found += [
            Looked(ids[None], (number,)) for number, (_, ids) in enumerate(self._calls) if ids.ndim == 1
        ]
        found += self._steps()
        kept: list[Looked] = []
        for one in found:
            same = [k for k in kept if k.stepwise == one.stepwise and torch.equal(k.ids, one.ids)]
            if same:
                kept[kept.index(same[0])] = Looked(one.ids, (*same[0].calls, *one.calls), one.stepwise)
            else:
                kept.append(one)
        return kept

    def _steps(self) -> list[Looked]:
        """Runs of lookups of one id per row in one table."""
        runs: dict[tuple[int, int], list[int]] = {}
        for number, (table, ids) in enumerate(self._calls):
            if ids.ndim == 1 or (ids.ndim == 2 and ids.shape[1] == 1):
                runs.setdefault((table, len(ids)), []).append(number)
        return [
            Looked(torch.stack([self._calls[n][1].flatten() for n in run], dim=1), tuple(run), True)
            for run in runs.values()
            if len(run) > 1
        ]


def disturbing(looked: Looked, places: torch.Tensor) -> dict[int, torch.Tensor]:
    """What :class:`Lookups` has to disturb so that these places of what was looked up change.

    Args:
        looked: from an earlier run of the same step.
        places: bool ``[rows, length]``.
    """
    if looked.stepwise:
        steps = looked.ids.shape[1]
        return {call: places[:, number % steps] for number, call in enumerate(looked.calls)}
    return dict.fromkeys(looked.calls, places)


def _lookup(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[int, torch.Tensor] | None:
    """The table (by identity) and the ids, where a call looks vectors up."""
    ids: Any = None
    table: Any = None
    if func is F.embedding:
        ids = args[0] if args else kwargs.get("input")
        table = args[1] if len(args) > 1 else kwargs.get("weight")
    elif func is F.one_hot:
        ids = args[0] if args else kwargs.get("input", kwargs.get("tensor"))
    elif func is torch.Tensor.__getitem__ and isinstance(args[0], torch.nn.Parameter) and args[0].ndim == 2:
        table, ids = args
    if not isinstance(ids, torch.Tensor) or ids.dtype not in _WHOLE or ids.ndim not in (1, 2):
        return None
    return id(table), ids


def _with_noise(vectors: torch.Tensor, places: torch.Tensor, seed: int) -> torch.Tensor:
    """The vectors ``[..., width]`` with others of the same spread at some places."""
    places = places.reshape(vectors.shape[:-1])
    if not vectors.is_floating_point():
        return torch.where(places.unsqueeze(-1), vectors.roll(1, -1), vectors)
    spread = vectors.detach().float().std(correction=0) if vectors.numel() > 1 else None
    scale = float(spread) if spread is not None and float(spread) > 0 else 1.0
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(vectors.shape, generator=generator).to(vectors) * (2 * scale)
    return torch.where(places.unsqueeze(-1), noise, vectors)
