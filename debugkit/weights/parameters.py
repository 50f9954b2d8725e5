"""Parameters in words: grouped by the largest modules that share a fate."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Group:
    """Parameters that share a fate: all trainable ones below a module, or one on its own.

    Attributes:
        name: dotted name of the module or of the parameter.
        names: dotted names of the parameters.
        is_module: whether ``name`` is a module.
    """

    name: str
    names: list[str]
    is_module: bool

    def contains(self, name: str) -> bool:
        """Whether a module is the group's own or lies below it."""
        return name == self.name or name.startswith(f"{self.name}.")


def groups_of(model: torch.nn.Module, names: Iterable[str]) -> Iterator[Group]:
    """The largest modules whose trainable parameters are all among ``names``, then single parameters."""
    wanted = set(names)
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]

    def walk(prefix: str, module: torch.nn.Module) -> Iterator[Group]:
        start = f"{prefix}." if prefix else ""
        inside = [name for name in trainable if name.startswith(start)]
        hit = [name for name in inside if name in wanted]
        if prefix and len(hit) == len(inside) > 1:
            yield Group(prefix, hit, True)
            return
        for name in hit:
            if "." not in name[len(start) :]:
                yield Group(name, [name], False)
        for child, inner in module.named_children():
            if any(name.startswith(f"{start}{child}.") for name in hit):
                yield from walk(f"{start}{child}", inner)

    yield from walk("", model)


def amount(model: torch.nn.Module, names: Iterable[str]) -> str:
    """``2 parameters with 1,024 values``."""
    listed = list(names)
    values = sum(model.get_parameter(name).numel() for name in listed)
    return f"{len(listed)} parameter{'s' if len(listed) != 1 else ''} with {values:,} values"


def places(groups: Sequence[Group]) -> str:
    """The first three groups by name, and how many more there are."""
    shown = ", ".join(f"`{group.name}`" for group in groups[:3])
    return shown + (f" and {len(groups) - 3} more" if len(groups) > 3 else "")
