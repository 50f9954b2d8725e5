"""Whether padding shows in a model's outputs, and which remedy helps: tried on a few padded rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from debugkit.data.batch import size, sliceable, take, tensors
from debugkit.data.columns import columns_of
from debugkit.errors import Broken
from debugkit.probes.batches import Batches
from debugkit.probes.decoded import takes
from debugkit.probes.token_ids import TokenIds
from debugkit.probes.training_step import run_step
from debugkit.sandbox import Sandbox
from debugkit.target import Target
from debugkit.tokens.padding import PaddedCall, gap, giving, rows_to_try, unset_masks

Doubt = Literal["missing", "wrong", "turned", "left"]

NOTICED = 1e-3
_BETTER = 0.1
_MASK = "attention_mask"


@dataclass(frozen=True)
class Effect:
    """How far outputs are from those of the same rows without padding, relative to their spread.

    Attributes:
        now: as the rows are.
        fixed: with the remedy.
        by: the parameter that the remedy uses.
    """

    now: float
    fixed: float
    by: str = ""

    @property
    def matters(self) -> bool:
        """Whether the padding shows in the outputs, and would not with the remedy."""
        return self.now > NOTICED and self.fixed < _BETTER * self.now


class PadTrial:
    """Calls of the model on some padded rows of the first batches.

    Args:
        target: the program.
        sandbox: what each trial runs in.
        batches: the first batches.
        ids: what is known of their padding.
    """

    def __init__(self, target: Target, sandbox: Sandbox, batches: Batches, ids: TokenIds) -> None:
        self._model = target.model
        self._call: PaddedCall | None = None
        self._mask: torch.Tensor | None = None
        self._rows: list[int] = []
        found = padded_part(batches, ids)
        if found is None:
            return
        part, self._rows, content, self._mask = found
        with sandbox.probe():
            if (call := call_of(target, part)) is not None:
                self._call = PaddedCall(*call, content)
        self._inverted = ids.inverted

    def effect(self, doubt: Doubt) -> Effect | None:
        """The outcome of one remedy; ``None`` where it can't be tried."""
        self._model.eval()
        try:
            with torch.no_grad():
                return {
                    "missing": self._missing,
                    "wrong": self._wrong,
                    "turned": self._turned,
                    "left": self._left,
                }[doubt]()
        except (
            Exception
        ):  # a call can't always be changed, and a model may refuse other lengths or masks in any way
            return None

    def _outputs(self, call: PaddedCall) -> Any:
        return self._model(*call.args, **call.kwargs)

    def _gap(self, outputs: Any, alone: list[Any], call: PaddedCall) -> float | None:
        gaps = [gap(outputs, one, call, row) for row, one in zip(self._rows, alone, strict=True)]
        known = [one for one in gaps if one is not None]
        return max(known) if len(known) == len(gaps) and known else None

    def _alone(self, call: PaddedCall) -> list[Any]:
        return [self._outputs(call.trimmed(row)) for row in self._rows]

    def _compare(self, call: PaddedCall, fixed: PaddedCall, by: str = "") -> Effect | None:
        alone = self._alone(fixed)
        now = self._gap(self._outputs(call), alone, call)
        then = self._gap(self._outputs(fixed), alone, fixed)
        return None if now is None or then is None else Effect(now, then, by)

    def _missing(self) -> Effect | None:
        if (call := self._call) is None:
            return None
        alone = self._alone(call)
        now = self._gap(self._outputs(call), alone, call)
        if now is None or now <= NOTICED:
            return None if now is None else Effect(now, now)
        best = Effect(now, now)
        for name, masked in call.with_masks(self._model):
            best = self._better(best, name, lambda masked=masked: self._outputs(masked), alone)  # type: ignore[misc]
            if best.matters:
                return best
        for path, module, name in self._parts_without_mask(call):
            for mask in call.masks():
                with giving(module, name, mask):
                    best = self._better(best, f"{path}({name}=...)", lambda: self._outputs(call), alone)
                if best.matters:
                    return best
        return best

    def _better(self, best: Effect, by: str, run: Callable[[], Any], alone: list[Any]) -> Effect:
        """The better of two remedies."""
        assert self._call is not None
        try:
            then = self._gap(run(), alone, self._call)
        except Exception:  # the mask is to have another type, or means something else
            return best
        return Effect(best.now, then, by) if then is not None and then < best.fixed else best

    def _parts_without_mask(self, call: PaddedCall) -> list[tuple[str, torch.nn.Module, str]]:
        """Encoders inside the model that take an attention mask and get none."""
        found: dict[str, tuple[str, torch.nn.Module, str]] = {}
        hooks = []
        for path, module in self._model.named_modules():
            if path and hasattr(module, "config") and takes(module.forward, _MASK):

                def look(part: torch.nn.Module, args: Any, kwargs: dict[str, Any], path: str = path) -> None:
                    whole = any(t.shape[:2] == call.content.shape for _, t in tensors([args, kwargs]))
                    if whole and _MASK in unset_masks(part, args, kwargs):
                        found.setdefault(path, (path, part, _MASK))

                hooks.append(module.register_forward_pre_hook(look, with_kwargs=True))
        try:
            self._outputs(call)
        finally:
            for hook in hooks:
                hook.remove()
        return list(found.values())[:1]

    def _wrong(self) -> Effect | None:
        if self._call is None or self._mask is None:
            return None
        wanted = ~self._call.content if self._inverted else self._call.content
        return self._compare(self._call, self._call.masked(self._mask, wanted))

    def _turned(self) -> Effect | None:
        if self._call is None or self._mask is None:
            return None
        own = self._gap(self._outputs(self._call), self._alone(self._call), self._call)
        if own is None or own <= NOTICED:
            return None if own is None else Effect(own, own)
        turned = self._compare(self._call, self._call.masked(self._mask, ~self._mask))
        return turned if turned is not None and turned.matters else self._missing()

    def _left(self) -> Effect | None:
        return None if self._call is None else self._compare(self._call, self._call.on_the_right())


def padded_part(
    batches: Batches, ids: TokenIds
) -> tuple[Any, list[int], torch.Tensor, torch.Tensor | None] | None:
    """Rows of a kept batch about whose padding there is a doubt.

    Returns:
        The part of the batch, which of its rows are doubtful, the content ``[rows, length]`` of all of them, and their
        mask.
    """
    for number, batch in enumerate(batches.items):
        rows: Any = np.flatnonzero(ids.batches == number)
        if len(rows) != size(batch) or len({len(ids.ids[row]) for row in rows}) != 1:
            continue
        doubtful = ids.padded[rows] | ids.uncovered[rows] | ids.hidden[rows]
        padding = np.where(doubtful & (ids.lengths[rows] > 0), ids.widths[rows] - ids.lengths[rows] + 1, 0)
        chosen = rows_to_try(padding.tolist())
        if not chosen:
            continue
        part = batch
        if sliceable(batch):
            part, rows, chosen = take(batch, chosen), rows[chosen], [*range(len(chosen))]
        width = len(ids.ids[rows[0]])
        content = torch.zeros(len(rows), width, dtype=torch.bool)
        for place, row in enumerate(rows):
            content[place, ids.starts[row] : ids.stops[row]] = True
        mask = columns_of(part).tensors.get(ids.mask) if ids.mask is not None else None
        return part, chosen, content, mask.cpu() != 0 if isinstance(mask, torch.Tensor) else None
    return None


def call_of(target: Target, part: Any) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """How the step calls the model as a whole."""
    seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def keep(module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        seen.append((args, dict(kwargs)))

    hook = target.model.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        run_step(target, part)
    except Broken:
        pass
    finally:
        hook.remove()
    return seen[-1] if seen else None
