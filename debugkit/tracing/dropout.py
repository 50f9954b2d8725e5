"""Dropout in all its forms: torch's own functions, and masks that a program draws and scales by hand."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

DROPOUTS = frozenset(
    {
        F.dropout,
        F.dropout1d,
        F.dropout2d,
        F.dropout3d,
        F.alpha_dropout,
        F.feature_alpha_dropout,
        torch.dropout,
        torch.dropout_,
    }
)
_RANDOM_SLOPES = frozenset({F.rrelu, F.rrelu_, torch.rrelu})
_UNIFORM = frozenset({"rand", "rand_like", "uniform_"})
_COMPARISONS = frozenset({"lt", "le", "gt", "ge"})
_CASTS = frozenset(
    [
        "float",
        "double",
        "half",
        "bfloat16",
        "bool",
        "int",
        "long",
        "to",
        "type",
        "type_as",
        "clone",
        "contiguous",
        "view",
        "reshape",
        "unsqueeze",
        "squeeze",
        "expand",
        "expand_as",
        "__invert__",
        "bitwise_not",
        "logical_not",
        "__rsub__",
        "rsub",
    ]
)


def drops(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether a call of a torch function perturbs activations as only training should."""
    if func in DROPOUTS:
        given = bound(func, args, kwargs)
        return bool(given.get("training", given.get("train", True))) and float(given.get("p", 0.5)) > 0
    if func in _RANDOM_SLOPES:
        given = bound(func, args, kwargs, names=("input", "lower", "upper", "training"))
        return bool(given.get("training")) and given.get("lower", 0.125) < given.get("upper", 1 / 3)
    if func is F.scaled_dot_product_attention:
        return float(kwargs.get("dropout_p", args[4] if len(args) > 4 else 0.0)) > 0
    if func is F.multi_head_attention_forward:
        given = bound(func, args, kwargs)
        return bool(given["training"]) and float(given["dropout_p"]) > 0
    return False


def bound(
    func: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    names: tuple[str, ...] = ("input", "p", "train"),
) -> dict[str, Any]:
    """Arguments by name; ``names`` are those of a builtin, which has no signature."""
    try:
        found = inspect.signature(func).bind(*args, **kwargs)
    except ValueError:
        return dict(zip(names, args, strict=False)) | dict(kwargs)
    found.apply_defaults()
    return dict(found.arguments)


@dataclass(frozen=True)
class _Trail:
    """What is known of a tensor: uniform noise, a 0/1 mask, masked values, or values divided by a number."""

    kind: str
    number: float = 0.0


class HandMadeDropout:
    """Follows random masks until they drop activations and the rest is divided by the share that is kept.

    The scaling tells dropout and stochastic depth from masks that are part of a task (masked tokens, dropped
    conditions, samples of a Bernoulli variable).
    """

    def __init__(self) -> None:
        self._trails: MutableMapping[torch.Tensor, _Trail] = WeakIdKeyDictionary()

    def sees(self, name: str, args: tuple[Any, ...], result: Any) -> bool:
        """Whether this call completes a dropout.

        Args:
            name: the torch function's name.
            args: its positional arguments.
            result: what it returned.
        """
        if not isinstance(result, torch.Tensor):
            return False
        trail = self._after(name, args)
        if trail is None:
            self._trails.pop(result, None)
            return False
        self._trails[result] = trail
        return trail.kind == "dropped"

    def _after(self, name: str, args: tuple[Any, ...]) -> _Trail | None:
        if name in _UNIFORM:
            return _Trail("uniform") if name != "uniform_" or args[1:] in ((), (0, 1)) else None
        if name in ("bernoulli", "bernoulli_"):
            share = _share(args)
            return None if share is None else _Trail("mask", share)
        name = name if name in _CASTS else name.strip("_")
        numbers = [float(a) for a in args if isinstance(a, (int, float)) and not isinstance(a, bool)]
        known = [self._trails[a] for a in args if isinstance(a, torch.Tensor) and a in self._trails]
        number = numbers[0] if len(numbers) == 1 else None
        mask = next((trail for trail in known if trail.kind in ("mask", "scaled mask")), None)
        if mask is None:
            return self._without_mask(name, known, number)
        if name in _CASTS:
            return mask
        if name in ("mul", "div", "truediv") and number is not None:
            return replace(mask, kind="scaled mask") if _undoes(name, number, mask.number) else None
        if name == "mul" or (name in ("where", "masked_fill") and number == 0):
            divided = any(t.kind == "divided" and _is_share(t.number, mask.number) for t in known)
            return replace(mask, kind="dropped" if divided or mask.kind == "scaled mask" else "masked")
        return None

    def _without_mask(self, name: str, known: list[_Trail], number: float | None) -> _Trail | None:
        first = known[0] if known else _Trail("")
        if first.kind == "uniform":
            if name in _COMPARISONS and number is not None:
                return _Trail("mask", number)
            if name in ("add", "radd") and number is not None:
                return replace(first, number=first.number + number)
            return _Trail("mask", first.number) if name == "floor" else None
        if name not in ("mul", "div", "truediv") or not number:
            return None
        if first.kind == "masked":
            return _Trail("dropped") if _undoes(name, number, first.number) else first
        return _Trail("divided", 1 / number if name == "mul" else number)


def _share(args: tuple[Any, ...]) -> float | None:
    """The probability of a Bernoulli draw, where it is one and the same for every element."""
    given = args[1] if len(args) > 1 else next(iter(args), None)
    if isinstance(given, (int, float)):
        return float(given)
    if not isinstance(given, torch.Tensor) or not given.numel() or not given.is_floating_point():
        return None
    first = given.flatten()[0]
    return float(first) if bool((given == first).all()) else None


def _undoes(name: str, number: float, share: float) -> bool:
    return number != 0 and _is_share(1 / number if name == "mul" else number, share)


def _is_share(number: float, share: float) -> bool:
    """Whether ``number`` is the share of a mask that was drawn with ``share``, or the rest."""
    return 0 < number < 1 and any(math.isclose(number, s, rel_tol=1e-5) for s in (share, 1 - share))


def without_dropout(func: Callable[..., Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments of a torch function with the dropout inside it switched off."""
    changed = dict(kwargs)
    if func is F.scaled_dot_product_attention and changed.get("dropout_p"):
        changed["dropout_p"] = 0.0
    elif func is F.multi_head_attention_forward:
        changed["training"] = False
    return changed


class NoDropout(TorchFunctionMode):
    """Switches dropout off while active, from outside."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in DROPOUTS and args:
            return args[0]
        return func(*args, **without_dropout(func, kwargs or {}))
