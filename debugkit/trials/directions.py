"""Directional derivatives of a function against what its backward pass gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

_DIRECTIONS = 6
_FLAT = 1e-6
_TINY = 1e-12
Judged = tuple[str, int, float, float]


class _Trial:
    """A function at a point, in one precision.

    Args:
        function: takes and gives tensors, alone or among other values.
        args: its arguments; those that require a gradient are differentiated.
        dtype: of all floating-point arguments.
    """

    def __init__(self, function: Callable[..., Any], args: Sequence[Any], dtype: torch.dtype) -> None:
        self._function = function
        self.args = [_cast(arg, dtype) for arg in args]
        self.inputs = [
            index for index, arg in enumerate(args) if isinstance(arg, torch.Tensor) and arg.requires_grad
        ]
        exact = dtype == torch.float64
        self.steps = (1e-4, 1e-5) if exact else (1e-2, 3e-3)
        self.tolerance = 1e-4 if exact else 3e-2

    def outputs(self, args: Sequence[Any]) -> list[torch.Tensor]:
        """The floating-point results."""
        given = [
            arg.clone() if isinstance(arg, torch.Tensor) and arg.is_floating_point() else arg for arg in args
        ]
        found = self._function(*given)
        return [one for one in (found if isinstance(found, (tuple, list)) else (found,)) if _is_float(one)]

    def gradients(self, cotangents: Sequence[torch.Tensor]) -> list[torch.Tensor | None]:
        """What ``backward`` gives for each input."""
        with torch.enable_grad():
            leaves = [
                arg.detach().clone().requires_grad_() if index in self.inputs else arg
                for index, arg in enumerate(self.args)
            ]
            pairs = [
                (one, c) for one, c in zip(self.outputs(leaves), cotangents, strict=True) if one.requires_grad
            ]
            found = torch.autograd.grad(
                [one for one, _ in pairs],
                [leaves[index] for index in self.inputs],
                [c for _, c in pairs],
                allow_unused=True,
            )
        return list(found)

    @torch.no_grad()
    def slope(self, position: int, direction: torch.Tensor, size: float) -> list[torch.Tensor]:
        """The central difference of the outputs along a direction of one input."""
        return [
            (up - down) / (2 * size)
            for up, down in zip(
                *(self.outputs(self._moved(position, direction * sign * size)) for sign in (1, -1)),
                strict=True,
            )
        ]

    def _moved(self, position: int, change: torch.Tensor) -> list[Any]:
        return [arg + change if index == position else arg for index, arg in enumerate(self.args)]


def compare(function: Callable[..., Any], args: Sequence[Any], dtype: torch.dtype) -> Judged:
    """Judge the backward pass of a function at one point.

    Returns:
        ``(verdict, position of the argument, error, factor)``; for the verdicts see
        :class:`~debugkit.probes.custom_backward.FunctionGradient`.
    """
    trial = _Trial(function, args, dtype)
    with torch.no_grad():
        first, again = trial.outputs(trial.args), trial.outputs(trial.args)
    if not first or not trial.inputs:
        return "unjudged", 0, 0.0, 1.0
    if not all(torch.equal(one, other) for one, other in zip(first, again, strict=True)):
        return "random", 0, 0.0, 1.0
    if any(
        one.shape == trial.args[i].shape and torch.equal(one, trial.args[i])
        for one in first
        for i in trial.inputs
    ):
        return "identity", 0, 0.0, 1.0
    cotangents = [[torch.randn_like(one) for one in first] for _ in range(_DIRECTIONS)]
    if (shape := _homogeneity(trial, cotangents[0])) is not None:
        return shape, trial.inputs[0], 1.0, 1.0
    found = [trial.gradients(one) for one in cotangents]
    judged = [
        one
        for place, position in enumerate(trial.inputs)
        if (one := _judge(trial, position, cotangents, [each[place] for each in found])) is not None
    ]
    for verdict in ("surrogate", "wrong", "scaled", "unjudged"):
        if (one := next((one for one in judged if one[0] == verdict), None)) is not None:
            return one
    return max(judged, key=lambda one: one[2], default=("unjudged", 0, 0.0, 1.0))


def _homogeneity(trial: _Trial, cotangents: list[torch.Tensor]) -> str | None:
    """Whether ``backward`` ignores what it is given, or does something to it that is not linear."""
    plain = trial.gradients(cotangents)
    double = trial.gradients([2 * one for one in cotangents])
    minus = trial.gradients([-one for one in cotangents])
    triples = [
        (a, b, c)
        for a, b, c in zip(plain, double, minus, strict=True)
        if a is not None and b is not None and c is not None and bool(a.any())
    ]
    if triples and all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in triples):
        return "ignores"
    for a, b, c in triples:
        room = 1e-3 * float(a.abs().max())
        if float((b - 2 * a).abs().max()) > room or float((c + a).abs().max()) > room:
            return "shaped"
    return None


def _judge(
    trial: _Trial, position: int, cotangents: list[list[torch.Tensor]], gradients: list[torch.Tensor | None]
) -> Judged | None:
    if any(one is None or not bool(one.any()) for one in gradients):
        return None
    point = trial.args[position]
    size = float(point.abs().mean()) or 1.0
    told, seen, coarse = [], [], []
    for vectors, gradient in zip(cotangents, gradients, strict=True):
        assert gradient is not None
        direction = torch.randn_like(point)
        told.append(float((gradient.to(point.dtype) * direction).sum()))
        large, small = (
            _product(trial.slope(position, direction, size * one), vectors) for one in trial.steps
        )
        coarse.append(large)
        seen.append(small)
    d, n, rough = (torch.tensor(values, dtype=torch.float64) for values in (told, seen, coarse))
    scale = max(float(d.abs().max()), float(n.abs().max()), _TINY)
    if not bool(torch.isfinite(d).all() and torch.isfinite(n).all()):
        return "unjudged", position, 0.0, 1.0
    error = float((d - n).abs().max()) / scale
    if error <= trial.tolerance:
        return "right", position, error, 1.0
    steady = float((n - rough).abs().max()) <= trial.tolerance * max(float(n.abs().max()), _TINY)
    if float(n.abs().max()) <= _FLAT * scale or not steady or _flat_elsewhere(trial, position, size):
        return "surrogate", position, error, 1.0
    factor = float((d @ n) / (n @ n))
    if float((d - factor * n).abs().max()) <= trial.tolerance * scale:
        return "scaled", position, error, factor
    return "wrong", position, error, 1.0


def _product(slopes: list[torch.Tensor], vectors: list[torch.Tensor]) -> float:
    return sum(float((slope * vector).sum()) for slope, vector in zip(slopes, vectors, strict=True))


def _flat_elsewhere(trial: _Trial, position: int, size: float) -> bool:
    """Whether an elementwise function gets its true slope wherever it has one, and another only where it is flat.

    So does a clamp whose gradient passes beyond its limits.
    """
    point = trial.args[position]
    step = size * trial.steps[-1]
    half = torch.rand_like(point) < 0.5
    slopes = trial.slope(position, torch.ones_like(point), step)
    if len(slopes) != 1 or slopes[0].shape != point.shape:
        return False
    moved = trial.slope(position, half.to(point.dtype), step)[0]
    limit = _FLAT * float(slopes[0].abs().max())
    if bool((moved[~half].abs() > limit).any()):
        return False
    gradient = trial.gradients([torch.ones_like(slopes[0])])[trial.inputs.index(position)]
    bends = slopes[0].abs() <= max(limit, 1e-9)
    if gradient is None or not bool(bends.any()) or bool(bends.all()):
        return False
    apart = (gradient - slopes[0]).abs()[~bends]
    return bool((apart <= 1e-2 * float(slopes[0].abs().max())).float().mean() > 0.95)


def _is_float(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point() and value.numel() > 0


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return value.detach().to(dtype)
    return value.detach() if isinstance(value, torch.Tensor) else value
