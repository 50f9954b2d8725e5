"""Which tensors the optimizer holds, against those that the model and the loss train."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from debugkit.evidence import Cost
from debugkit.probes.schedule_rehearsal import groups_of
from debugkit.state.objects import reachable
from debugkit.target import Target
from debugkit.trials.schedule import unwrap, unwrap_scheduler
from debugkit.weights.memory import Span, span_of


@dataclass(frozen=True)
class Orphan:
    """A tensor in the optimizer that nothing trains any more.

    Attributes:
        shape: its shape.
        owned: whether a module that is not part of the model still holds it.
    """

    shape: tuple[int, ...]
    owned: bool


@dataclass(frozen=True)
class OptimizerParameters:
    """The optimizer's tensors and the model's, matched by identity and by memory.

    Names are the model's; parameters of a ``loss_fn`` that is a module are called ``loss_fn.NAME``.

    Attributes:
        groups: the parameter group of each of the model's (and the loss's) parameters that the optimizer holds.
        frozen: names of those that are held and have ``requires_grad=False``.
        missing: names of trainable parameters that the optimizer holds neither themselves nor by their memory.
        elsewhere: names of those of the missing that another living optimizer holds.
        orphans: tensors that it holds and that belong to neither the model nor the loss, nor to what the training
            step or the loss function refers to.
        extra: how many tensors it holds that belong to the training step or the loss function.
        doubled: names of parameters that it holds twice, themselves or by their memory.
        copies: whether what it holds are copies of the model's parameters in another precision or flattened.
        aliases: frozen parameters that share memory with a trainable one that is held, as pairs of names.
        drives: whether the scheduler drives this optimizer; ``None`` where that can't be told.
    """

    cost: ClassVar[Cost] = "static"
    groups: Mapping[str, int]
    frozen: frozenset[str]
    missing: tuple[str, ...]
    elsewhere: frozenset[str]
    orphans: tuple[Orphan, ...]
    extra: int
    doubled: tuple[str, ...]
    copies: bool
    aliases: tuple[tuple[str, str], ...]
    drives: bool | None

    @staticmethod
    def collect(target: Target) -> OptimizerParameters:
        """Match them.

        Raises:
            Unavailable: there is no optimizer.
        """
        groups = groups_of(target)
        held = [(p, index) for index, group in enumerate(groups) for p in group["params"]]
        place = {id(p): index for p, index in reversed(held)}
        named = dict(parameters_of(target))
        known = {id(p) for p in named.values()}
        foreign = [p for p, _ in held if id(p) not in known]
        linked = {
            id(v) for v in reachable(target.training_step, target.loss_fn) if isinstance(v, torch.Tensor)
        }
        orphans = [p for p in foreign if id(p) not in linked]
        memory = {span for p, _ in held if (span := span_of(p)) is not None}
        missing = [
            name
            for name, p in named.items()
            if p.requires_grad and id(p) not in place and not _is_inside(span_of(p), memory)
        ]
        return OptimizerParameters(
            groups={name: place[id(p)] for name, p in named.items() if id(p) in place},
            frozen=frozenset(name for name, p in named.items() if id(p) in place and not p.requires_grad),
            missing=tuple(missing),
            elsewhere=_held_elsewhere(target, {name: named[name] for name in missing}),
            orphans=tuple(_describe(orphans)),
            extra=len(foreign) - len(orphans),
            doubled=tuple(_doubled(named, [p for p, _ in held])),
            copies=_are_copies([named[name] for name in missing], orphans),
            aliases=tuple(_aliases(named, place)),
            drives=_drives(target),
        )


def parameters_of(target: Target) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """The parameters of the model, and those of a loss that is a module as ``loss_fn.NAME``."""
    yield from target.model.named_parameters()
    if isinstance(target.loss_fn, torch.nn.Module):
        inside = {id(p) for p in target.model.parameters()}
        for name, parameter in target.loss_fn.named_parameters():
            if id(parameter) not in inside:
                yield f"loss_fn.{name}", parameter


def _is_inside(span: Span | None, memory: set[Span]) -> bool:
    return span is not None and any(other.contains(span) for other in memory)


def _held_elsewhere(target: Target, missing: Mapping[str, torch.nn.Parameter]) -> frozenset[str]:
    """The names of parameters that an optimizer other than the target's holds."""
    if not missing:
        return frozenset()
    own = unwrap(target.optimizer)
    held: set[int] = set()
    for value in gc.get_objects():
        if issubclass(type(value), torch.optim.Optimizer) and value is not own:
            held.update(id(p) for group in getattr(value, "param_groups", ()) for p in group["params"])
    return frozenset(name for name, p in missing.items() if id(p) in held)


def _describe(orphans: list[torch.Tensor]) -> Iterator[Orphan]:
    wanted = {id(p) for p in orphans}
    owned: set[int] = set()
    if orphans:
        for value in gc.get_objects():
            if issubclass(type(value), torch.nn.Module):
                owned.update(wanted & {id(p) for p in vars(value).get("_parameters", {}).values()})
    for orphan in orphans:
        yield Orphan(tuple(orphan.shape), id(orphan) in owned)


def _doubled(named: Mapping[str, torch.nn.Parameter], held: list[torch.Tensor]) -> Iterator[str]:
    times = Counter(id(p) for p in held)
    spans = Counter(span for p in {id(p): p for p in held}.values() if (span := span_of(p)) is not None)
    for name, parameter in named.items():
        span = span_of(parameter)
        if times[id(parameter)] > 1 or (id(parameter) in times and span is not None and spans[span] > 1):
            yield name


def _are_copies(missing: list[torch.nn.Parameter], orphans: list[torch.Tensor]) -> bool:
    """Whether the optimizer works on copies that somebody writes back: in single precision, or as flat tensors."""
    if not missing or not orphans:
        return False
    wider = all(p.dtype is torch.float32 for p in orphans) and any(p.element_size() < 4 for p in missing)
    same_shapes = Counter(tuple(p.shape) for p in missing) == Counter(tuple(p.shape) for p in orphans)
    flat = all(p.ndim == 1 for p in orphans) and any(p.ndim > 1 for p in missing)
    values = sum(p.numel() for p in missing)
    enough = values <= sum(p.numel() for p in orphans) < 1.1 * values + 1024
    return (wider and same_shapes) or (flat and enough)


def _aliases(named: Mapping[str, torch.nn.Parameter], place: Mapping[int, int]) -> Iterator[tuple[str, str]]:
    trained = [(name, span_of(p)) for name, p in named.items() if p.requires_grad and id(p) in place]
    frozen = [(name, span_of(p)) for name, p in named.items() if not p.requires_grad]
    if not trained or not frozen:
        return
    for name, span in frozen:
        other = next((other for other, theirs in trained if span and theirs and span.overlaps(theirs)), None)
        if other is not None:
            yield name, other


def _drives(target: Target) -> bool | None:
    """Whether a step of the scheduler changes the groups of the optimizer."""
    if target.scheduler is None:
        return None
    driven = getattr(unwrap_scheduler(target.scheduler), "optimizer", None)
    groups = getattr(unwrap(driven), "param_groups", None)
    if groups is None:
        return None
    own: list[Any] = unwrap(target.optimizer).param_groups
    return any(one is other for one in groups for other in own)
