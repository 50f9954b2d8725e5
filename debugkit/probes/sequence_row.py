"""One row of the user's batch, alone in eval mode: what its outputs are, and which positions they are read from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from debugkit.data.batch import tensors
from debugkit.errors import Unavailable
from debugkit.evidence import Cost
from debugkit.probes.batches import Batches
from debugkit.probes.eval_passes import EvalPasses
from debugkit.probes.token_ids import TokenIds
from debugkit.probes.training_step import TrainingStep
from debugkit.sandbox import Sandbox
from debugkit.target import Target
from debugkit.tokens.call_rows import CallRows
from debugkit.tokens.pad_trial import call_of, padded_part
from debugkit.tokens.row_call import RowCall, floats
from debugkit.tracing.program import Program, primary_output

_LAST = 12


@dataclass(frozen=True, eq=False)
class SequenceRow:
    """A row of token ids or features, and one pass of it.

    Attributes:
        call: the row as the model gets it: a padded one where the first batches have one.
        outputs: the floating-point tensors that the model gives, by path.
        one_for_all: whether its main output is one vector for the row, not one for each position.
        pooled: the positions of the last hidden states that this vector is computed from; empty where that could
            not be told.
        reads: the positions of the sequence that it depends on.
        mixes: whether the last real position depends on others, where the result depends on one alone.
        maps: attention weights ``[..., length, length]`` among what modules give, by dotted name.
        decodes: whether a decoder reads a sequence of its own, so that its positions are others.
        pad: the id of padding, where known.
        tolerance: the difference between outputs, relative to their spread, that rounding may explain.
    """

    cost: ClassVar[Cost] = "backward"
    call: RowCall = field(repr=False)
    outputs: dict[str, torch.Tensor] = field(repr=False)
    one_for_all: bool
    pooled: tuple[int, ...]
    reads: tuple[int, ...]
    mixes: bool
    maps: dict[str, torch.Tensor] = field(repr=False)
    decodes: bool
    pad: int | None
    tolerance: float

    @staticmethod
    def collect(
        target: Target,
        sandbox: Sandbox,
        batches: Batches,
        step: TrainingStep,
        passes: EvalPasses | None,
        ids: TokenIds | None,
    ) -> SequenceRow:
        """Run one row without its labels, and differentiate its main output where that is one vector.

        Raises:
            Unavailable: the step gives the model no sequences, or no row can be taken alone.
        """
        if step.root_call is None:
            raise Unavailable("the training step calls parts of the model, never the model as a whole")
        if passes is None or passes.gap > passes.tolerance:
            raise Unavailable("two passes in eval mode differ, so that no effect of padding can be told")
        rows, number = _rows(target, sandbox, batches, step.root_call, ids)
        for labels in (False, True):
            with sandbox.probe():
                target.model.eval()
                try:
                    with Program(target).precision():
                        return _run(target, rows.row(number, labels), rows.pad)
                except Exception:  # without labels, or with a single row, a model may refuse in any way
                    continue
        raise Unavailable("the model does not run on one row of the batch alone")


def _rows(
    target: Target,
    sandbox: Sandbox,
    batches: Batches,
    call: tuple[tuple[Any, ...], dict[str, Any]],
    ids: TokenIds | None,
) -> tuple[CallRows, int]:
    """A padded row, of another batch where the first one has none; else the one with the most content."""
    rows = CallRows.of(target.model, *call, None if ids is None else ids.pad)
    if rows is None:
        raise Unavailable(
            "the step gives the model no token ids, and no features with padding that is marked"
        )
    if (number := rows.most_padded()) is not None:
        return rows, number
    if ids is not None and ids.padded.any() and (found := padded_part(batches, ids)) is not None:
        with sandbox.probe():
            target.model.eval()
            other = call_of(target, found[0])
        padded = None if other is None else CallRows.of(target.model, *other, ids.pad)
        if padded is not None and (number := padded.most_padded()) is not None:
            return padded, number
    number = rows.fullest()
    if number is None:
        raise Unavailable("no row of the batch has its content in one stretch")
    return rows, number


def _run(target: Target, call: RowCall, pad: int | None) -> SequenceRow:
    with _watching(target.model, call.length) as watch:
        outputs = call.on(target.model)
    main = primary_output(outputs)
    one_for_all = isinstance(main, torch.Tensor) and _is_one(main, call.length)
    pooled, reads = _sources(main, watch.hidden) if one_for_all else ((), ())
    mixes = len(reads) != 1 or _mixes(watch.hidden, call.span.stop - 1)
    found = {path: t for path, t in tensors(outputs, "outputs") if is_attention(t, call.length)}
    half = any(t.dtype in (torch.bfloat16, torch.float16) for _, t in tensors(outputs))
    return SequenceRow(
        call=call,
        outputs=floats(outputs),
        one_for_all=one_for_all,
        pooled=pooled,
        reads=reads,
        mixes=mixes,
        maps={**watch.maps, **{path: t.detach() for path, t in found.items()}},
        decodes=bool(getattr(getattr(target.model, "config", None), "is_encoder_decoder", False)),
        pad=pad,
        tolerance=5e-2 if half or target.autocast_dtype is not None else 1e-3,
    )


class _Watch:
    """What modules give: hidden states of all positions, in order, and attention weights."""

    def __init__(self) -> None:
        self.hidden: list[torch.Tensor] = []
        self.maps: dict[str, torch.Tensor] = {}


@contextmanager
def _watching(model: torch.nn.Module, length: int) -> Iterator[_Watch]:
    watch = _Watch()
    hooks = []

    def look(name: str) -> Any:
        def keep(module: torch.nn.Module, args: Any, output: Any) -> Any:
            for _, tensor in tensors(output):
                if not tensor.is_floating_point():
                    continue
                if is_attention(tensor, length):
                    watch.maps.setdefault(name, tensor.detach())
                elif tensor.ndim >= 3 and tuple(tensor.shape[:2]) in ((1, length), (length, 1)):
                    if not tensor.requires_grad and tensor is output and not watch.hidden:
                        output = (
                            tensor
                            + torch.zeros((), dtype=tensor.dtype, device=tensor.device).requires_grad_()
                        )
                        watch.hidden.append(output)
                        return output
                    watch.hidden.append(tensor)
            return None

        return keep

    try:
        for name, module in model.named_modules():
            if name and not isinstance(module, torch.jit.ScriptModule):
                hooks.append(module.register_forward_hook(look(name)))
        yield watch
    finally:
        for hook in hooks:
            hook.remove()


def _sources(main: torch.Tensor, hidden: list[torch.Tensor]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The positions that a vector depends on, in the last hidden states and in the first."""
    asked = [tensor for tensor in (hidden[:1] + hidden[1:][-_LAST:]) if tensor.requires_grad]
    if not main.requires_grad or not asked:
        return (), ()
    gradients = torch.autograd.grad(_weighted(main), asked, allow_unused=True, retain_graph=True)
    found = [_places(gradient) for gradient in gradients if gradient is not None]
    found = [places for places in found if places]
    return (found[-1], found[0]) if found else ((), ())


def _weighted(values: torch.Tensor) -> torch.Tensor:
    """A sum with different weights: a plain one is constant behind a normalisation or a softmax."""
    weights = torch.linspace(1.0, 2.0, values.numel(), device=values.device)
    return (values.float().flatten() * weights).sum()


def _mixes(hidden: list[torch.Tensor], last: int) -> bool:
    """Whether the last hidden state of a position depends on other positions."""
    for tensor in reversed(hidden[1:]):
        if tensor.requires_grad:
            chosen = tensor[0, last] if tensor.shape[0] == 1 else tensor[last, 0]
            (gradient,) = torch.autograd.grad(_weighted(chosen), hidden[:1], allow_unused=True)
            return gradient is not None and len(_places(gradient)) > 1
    return False


def _places(gradient: torch.Tensor) -> tuple[int, ...]:
    """The positions where a gradient is not zero."""
    by_place = gradient.detach().abs().float()
    by_place = by_place[0] if by_place.shape[0] == 1 else by_place[:, 0]
    amounts = by_place.flatten(1).sum(1)
    return tuple(amounts.nonzero().flatten().tolist()) if bool(amounts.isfinite().all()) else ()


def _is_one(main: torch.Tensor, length: int) -> bool:
    return (
        main.is_floating_point() and main.ndim in (1, 2) and main.shape[0] == 1 and length not in main.shape
    )


def is_attention(tensor: torch.Tensor, length: int) -> bool:
    """Whether a tensor ``[..., length, length]`` holds weights of every position for every position."""
    if tensor.ndim < 3 or tuple(tensor.shape[-2:]) != (length, length) or not tensor.is_floating_point():
        return False
    values = tensor.detach().float()
    sums = values.sum(-1)
    whole = (sums - 1).abs() < 1e-2
    return bool((values >= 0).all()) and bool((whole | (sums == 0)).all()) and bool(whole.any())
