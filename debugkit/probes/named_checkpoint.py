"""The checkpoint that a model's config names, held against the model's weights."""

from __future__ import annotations

import pickle
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn

from debugkit.errors import Unavailable, one_line
from debugkit.evidence import Cost
from debugkit.target import Target
from debugkit.weights.checkpoint_files import TensorFile, find_weights, open_weights

_MOST_COMPARED = 96
_FEWEST_VALUES = 64
_MOST_VALUES = 2**22
_RELATED = 0.2
_DEEPEST = 3
_ADAPTER_PARTS = re.compile(r"\.(base_layer|original_module)(?=\.)")


@dataclass(frozen=True)
class NamedCheckpoint:
    """Which weights of a model come from the checkpoint that its config names.

    A weight comes from the checkpoint where its values are equal or correlated: training leaves a weight close to
    where it started, and independent draws have no correlation.

    Attributes:
        checkpoint: the name, a path or a model of the hub.
        module: dotted name of the module whose config names it.
        local: whether the name is a folder.
        related: names of compared weights that come from it.
        unrelated: names of compared weights that the checkpoint holds and the model does not.
        missing: names of weights that the checkpoint does not hold, though it holds those of sibling blocks.
        reshaped: names of weights that the checkpoint holds in another shape.
        absent: how many further weights the checkpoint does not hold.
        model_prefix: what the model's names begin with and the checkpoint's do not.
        file_prefix: what the checkpoint's names begin with and the model's do not.
    """

    cost: ClassVar[Cost] = "static"
    checkpoint: str
    module: str
    local: bool
    related: tuple[str, ...]
    unrelated: tuple[str, ...]
    missing: tuple[str, ...]
    reshaped: tuple[str, ...]
    absent: int
    model_prefix: str
    file_prefix: str

    @staticmethod
    def collect(target: Target) -> NamedCheckpoint:
        """Read up to 96 weights of the checkpoint, one at a time; nothing is fetched.

        Raises:
            Unavailable: no config names a checkpoint, or its weights are not on this machine or can't be read.
        """
        path, module, name = _named(target.model)
        if (file := find_weights(name)) is None:
            raise Unavailable(f"the weights of `{name}`, which the config names, are not on this machine")
        try:
            with open_weights(file) as held:
                return _compare(path, module, name, held)
        except (OSError, ValueError, ImportError, KeyError, RuntimeError, pickle.UnpicklingError) as error:
            raise Unavailable(f"`{file.name}` of `{name}` can't be read: {one_line(error)}") from error


def _named(model: nn.Module) -> tuple[str, nn.Module, str]:
    for path, module in model.named_modules():
        name = getattr(vars(module).get("config"), "_name_or_path", None)
        if isinstance(name, str) and name:
            return path, module, name
    raise Unavailable("no config of the model names a checkpoint")


def _compare(path: str, module: nn.Module, checkpoint: str, held: TensorFile) -> NamedCheckpoint:
    named = {
        name: parameter
        for name, parameter in module.named_parameters()
        if parameter.ndim >= 2 and parameter.numel() >= _FEWEST_VALUES
    }
    full = {_ADAPTER_PARTS.sub("", f".{name}")[1:]: name for name in named}
    own = {short: named[name] for short, name in full.items()}
    if not own:
        raise Unavailable("the model has no weight matrix to compare with its checkpoint")
    model_prefix, file_prefix = _prefixes(own, held.shapes)
    pairs = {name: f"{file_prefix}{name.removeprefix(model_prefix)}" for name in own}
    pairs = {name: key if key in held.shapes else name for name, key in pairs.items()}
    common = [name for name, key in pairs.items() if held.shapes.get(key) == tuple(own[name].shape)]
    reshaped = [name for name, key in pairs.items() if key in held.shapes and name not in common]
    rest = [name for name in own if pairs[name] not in held.shapes]
    roles = {_role(name) for name in common}
    missing = [name for name in rest if _role(name) in roles and _role(name) != name]
    related: list[str] = []
    unrelated: list[str] = []
    for name in common[:: -(-len(common) // _MOST_COMPARED) or 1]:
        kept = _is_related(own[name], held.tensor(pairs[name]))
        if kept is not None:
            (related if kept else unrelated).append(full[name])
    return NamedCheckpoint(
        checkpoint=checkpoint,
        module=path,
        local=Path(checkpoint).expanduser().is_dir(),
        related=tuple(related),
        unrelated=tuple(unrelated),
        missing=tuple(full[name] for name in missing),
        reshaped=tuple(full[name] for name in reshaped),
        absent=len(rest) - len(missing),
        model_prefix=model_prefix,
        file_prefix=file_prefix,
    )


def _role(name: str) -> str:
    return re.sub(r"\.\d+\.", ".#.", f".{name}")[1:]


def _prefixes(own: dict[str, nn.Parameter], shapes: dict[str, tuple[int, ...]]) -> tuple[str, str]:
    """What to take off the model's names, and to put before them, so that most of them are in the file."""
    ours, theirs = _starts(list(own)), _starts(list(shapes))

    def matches(pair: tuple[str, str]) -> int:
        cut = (name.removeprefix(pair[0]) for name in own if name.startswith(pair[0]))
        return sum(f"{pair[1]}{name}" in shapes for name in cut)

    choices = [(one, other) for one in ours for other in theirs]
    return max(choices, key=lambda pair: (matches(pair), -len(pair[0]) - len(pair[1])))


def _starts(names: list[str]) -> list[str]:
    """The prefixes that most names have, the empty one included."""
    found: Counter[str] = Counter()
    for name in names:
        parts = name.split(".")
        found.update(".".join(parts[:depth]) + "." for depth in range(1, min(_DEEPEST, len(parts) - 1) + 1))
    return ["", *(prefix for prefix, count in found.items() if count > len(names) / 3)]


@torch.no_grad()
def _is_related(weight: torch.Tensor, saved: torch.Tensor) -> bool | None:
    """Whether two weights have a common origin; ``None`` where a constant or unreadable one does not tell."""
    if weight.is_meta or not weight.is_floating_point() or not saved.is_floating_point():
        return None
    if type(weight.data) is not torch.Tensor or weight.layout is not torch.strided:
        return None
    step = -(-weight.numel() // _MOST_VALUES)
    one, other = (each.detach().reshape(-1)[::step].double().cpu() for each in (weight, saved))
    one, other = one - one.mean(), other - other.mean()
    size = float(one.norm() * other.norm())
    if not 0 < size < float("inf"):
        return None
    noise = 6 * len(one) ** -0.5
    return bool(abs(float(one @ other)) / size > min(0.9, max(_RELATED, noise)))
