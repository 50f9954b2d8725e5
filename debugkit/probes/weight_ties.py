"""Which parameters are one tensor, which are meant to be, and which only look like it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from debugkit.evidence import Cost
from debugkit.sandbox import Sandbox
from debugkit.state.tensor_state import same_bits
from debugkit.target import Target
from debugkit.weights.model_matrices import is_table

_FEWEST_ROWS = 8


@dataclass(frozen=True)
class Untied:
    """A parameter that the model's own ``tie_weights`` would replace by another.

    Attributes:
        name: the parameter that would be replaced.
        source: the parameter that would take its place.
        equal: whether both hold the same values.
        declared: whether the model keeps the pair in its own list of ties; it follows from its config alone else.
    """

    name: str
    source: str
    equal: bool
    declared: bool


@dataclass(frozen=True)
class Copied:
    """A projection that holds a copy of an embedding table.

    Attributes:
        table: the table's name.
        projection: the projection's name.
        rows: how many rows are equal, bit for bit; all of the smaller of the two.
        same_size: whether both have as many rows.
        trainable: whether both are trainable.
    """

    table: str
    projection: str
    rows: int
    same_size: bool
    trainable: bool


@dataclass(frozen=True)
class Repeated:
    """A container all of whose entries with weights share the same ones.

    Attributes:
        container: its dotted name.
        names: the entries' dotted names.
        kind: the entries' class.
        values: how many values one entry has.
        sequential: whether the container itself runs its entries one after another.
        one_object: whether all entries are one module object; shallow copies else.
    """

    container: str
    names: tuple[str, ...]
    kind: str
    values: int
    sequential: bool
    one_object: bool


@dataclass(frozen=True)
class WeightTies:
    """Shared parameters, as they are and as they are meant.

    Attributes:
        shared: the names of each parameter that has several.
        untied: pairs that ``tie_weights`` would make one.
        overlapping: names of two parameters that are different objects on the same memory.
        copied: projections that hold a copy of an embedding table.
        repeated: containers that hold the same weights again and again.
        against_config: names of input and output embedding where they are one though the config says they are not.
        lists: how many containers hold several entries with weights.
        could_tie: whether there is anything that could be shared at all.
    """

    cost: ClassVar[Cost] = "static"
    shared: tuple[tuple[str, ...], ...]
    untied: tuple[Untied, ...]
    overlapping: tuple[tuple[str, str], ...]
    copied: tuple[Copied, ...]
    repeated: tuple[Repeated, ...]
    against_config: tuple[str, str] | None
    lists: int
    could_tie: bool

    @staticmethod
    def collect(target: Target, sandbox: Sandbox) -> WeightTies:
        """Compare parameters, and call the model's own ``tie_weights`` where there is one; it is undone."""
        model = target.model
        named = dict(model.named_parameters(remove_duplicate=False))
        names: dict[int, list[str]] = {}
        for name, parameter in named.items():
            names.setdefault(id(parameter), []).append(name)
        containers = [(path, entries) for path, entries in _containers(model) if len(entries) > 1]
        repeated = tuple(_repeated(model, containers))
        inside = {name for one in repeated for name in one.names}
        tied = tuple(
            tuple(group)
            for group in names.values()
            if len(group) > 1 and not all(any(n.startswith(f"{entry}.") for entry in inside) for n in group)
        )
        tables, projections = _owners(model)
        return WeightTies(
            shared=tied,
            untied=tuple(_untied(model, sandbox)),
            overlapping=tuple(_overlapping(model)),
            copied=tuple(_copied(model, tables, projections)),
            repeated=repeated,
            against_config=_against_config(model, named),
            lists=len(containers),
            could_tie=bool(tied or (tables and projections) or containers or list(_tiers(model))),
        )


def _tiers(model: nn.Module) -> Iterator[tuple[str, Callable[..., Any]]]:
    """The outermost modules that have a method ``tie_weights``, and that method."""
    found: list[str] = []
    for path, module in model.named_modules():
        if any(path == other or path.startswith(f"{other}.") or not other for other in found):
            continue
        tie = getattr(module, "tie_weights", None)
        if callable(tie) and not isinstance(tie, nn.Module):
            found.append(path)
            yield path, tie


def _untied(model: nn.Module, sandbox: Sandbox) -> Iterator[Untied]:
    before = dict(model.named_parameters(remove_duplicate=False))
    for _, tie in _tiers(model):
        by_config = "recompute_mapping" in _argument_names(tie)
        told: set[str] = set()
        for options in ({"recompute_mapping": False}, {}) if by_config else ({},):
            for name, source in _ties(model, sandbox, tie, options):
                if name not in told and before[name] is not before[source]:
                    told.add(name)
                    equal = same_bits(before[name].detach(), before[source].detach())
                    yield Untied(name, source, equal, bool(options) or not by_config)


def _argument_names(function: Callable[..., Any]) -> set[str]:
    try:
        return set(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return set()


def _ties(
    model: nn.Module, sandbox: Sandbox, tie: Callable[..., Any], options: dict[str, bool]
) -> list[tuple[str, str]]:
    """The parameters that tying replaces, each with the one that takes its place."""
    before = dict(model.named_parameters(remove_duplicate=False))
    with sandbox.probe():
        try:
            tie(**options)
        except Exception:  # a foreign method may refuse in any way
            return []
        after = dict(model.named_parameters(remove_duplicate=False))
        return [
            (name, source)
            for name, parameter in after.items()
            if name in before and parameter is not before[name]
            for source in [next((n for n, p in before.items() if p is parameter), None)]
            if source is not None
        ]


def _overlapping(model: nn.Module) -> Iterator[tuple[str, str]]:
    seen: dict[tuple[int, tuple[int, ...], tuple[int, ...]], str] = {}
    for name, parameter in model.named_parameters():
        if is_lazy(parameter) or parameter.is_meta or parameter.layout is not torch.strided:
            continue
        if type(parameter.data) is not torch.Tensor or not parameter.numel() or not parameter.requires_grad:
            continue
        place = (parameter.data_ptr(), tuple(parameter.shape), parameter.stride())
        if place[0] and place in seen:
            yield seen[place], name
        seen.setdefault(place, name)


def _owners(model: nn.Module) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
    """The weights of embedding tables, and those of projections, by name."""
    tables: dict[str, nn.Parameter] = {}
    projections: dict[str, nn.Parameter] = {}
    for path, module in model.named_modules():
        weight = module._parameters.get("weight")
        if weight is None or is_lazy(weight) or weight.ndim != 2 or not weight.is_floating_point():
            continue
        if weight.is_meta or type(weight.data) is not torch.Tensor or weight.layout is not torch.strided:
            continue
        name = f"{path}.weight" if path else "weight"
        if is_table(module):
            tables[name] = weight
        elif isinstance(module, nn.Linear):
            projections[name] = weight
    return tables, projections


@torch.no_grad()
def _copied(
    model: nn.Module, tables: dict[str, nn.Parameter], projections: dict[str, nn.Parameter]
) -> Iterator[Copied]:
    looked_up = {id(weight) for weight in tables.values()}
    for table_name, table in tables.items():
        for name, weight in projections.items():
            rows = min(len(table), len(weight))
            fits = table.shape[1] == weight.shape[1] and table.dtype == weight.dtype
            if id(weight) in looked_up or not fits or rows < _FEWEST_ROWS or table.device != weight.device:
                continue
            if not same_bits(table[:1], weight[:1]) or not same_bits(table[:rows], weight[:rows]):
                continue
            if bool((table[:rows] == table[0, 0]).all()) or table.data_ptr() == weight.data_ptr():
                continue
            both = table.requires_grad and weight.requires_grad
            yield Copied(table_name, name, rows, len(table) == len(weight), both)
            break


def _containers(model: nn.Module) -> Iterator[tuple[str, list[tuple[str, nn.Module]]]]:
    """Each list and sequence of modules, with the entries that have weights, repeated ones too."""
    for path, container in model.named_modules():
        if isinstance(container, (nn.ModuleList, nn.Sequential)):
            entries = container._modules.items()
            yield (
                path,
                [
                    (f"{path}.{key}" if path else key, module)
                    for key, module in entries
                    if module is not None and any(True for _ in module.parameters())
                ],
            )


def _repeated(
    model: nn.Module, containers: list[tuple[str, list[tuple[str, nn.Module]]]]
) -> Iterator[Repeated]:
    for path, entries in containers:
        if len({frozenset(id(p) for p in module.parameters()) for _, module in entries}) == 1:
            first = entries[0][1]
            yield Repeated(
                container=path,
                names=tuple(name for name, _ in entries),
                kind=type(first).__name__,
                values=sum(0 if is_lazy(p) else p.numel() for p in first.parameters()),
                sequential=isinstance(model.get_submodule(path), nn.Sequential),
                one_object=len({id(module) for _, module in entries}) == 1,
            )


def _against_config(model: nn.Module, named: dict[str, nn.Parameter]) -> tuple[str, str] | None:
    """The names of input and output embedding where these are one tensor and the config says they are not."""
    config = getattr(model, "config", None)
    text = getattr(config, "get_text_config", lambda: config)()
    if getattr(config, "tie_word_embeddings", None) is not False:
        return None
    if getattr(text, "tie_word_embeddings", False) is not False:
        return None
    found = []
    for getter in ("get_input_embeddings", "get_output_embeddings"):
        try:
            module = getattr(model, getter)()
        except (AttributeError, NotImplementedError, TypeError):
            return None
        weight = getattr(module, "weight", None)
        if not isinstance(weight, nn.Parameter):
            return None
        found.append(weight)
    names = [name for name, parameter in named.items() if parameter is found[0]]
    return (names[0], names[1]) if found[0] is found[1] and len(names) > 1 else None
