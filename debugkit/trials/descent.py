"""Lowest values of smooth objectives, with and without bounds."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from debugkit.sandbox import own_steps

_STEPS = 150

Objective = Callable[[torch.Tensor], torch.Tensor]


def descend_freely(objective: Objective, start: torch.Tensor) -> tuple[float, torch.Tensor]:
    """The lowest value of an objective, and where; ``nan`` where its values are no numbers."""
    values = start.clone(memory_format=torch.contiguous_format).requires_grad_()
    solver = torch.optim.LBFGS([values], max_iter=_STEPS, history_size=10, line_search_fn="strong_wolfe")

    def closure() -> float:
        values.grad = None
        loss = objective(values)
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    try:
        with own_steps():
            solver.step(closure)  # type: ignore[no-untyped-call]
    except (IndexError, RuntimeError):  # its line search gives up where a value is not a number or has no end
        return math.nan, start
    return float(objective(values.detach())), values.detach()


def descend_within(
    objective: Objective, start: torch.Tensor, low: torch.Tensor, high: torch.Tensor
) -> tuple[float, float]:
    """The lowest value found between two bounds, and one that a convex objective can't go below."""
    span = (high - low).clamp_min(1e-12)
    place = ((start - low) / span).clamp(0, 1).requires_grad_()
    adam = torch.optim.Adam([place], lr=0.1)
    best, certified = math.inf, -math.inf
    for step in range(_STEPS):
        adam.param_groups[0]["lr"] = 0.1 * (1 - step / _STEPS)
        place.grad = None
        loss = objective(low + span * place)
        loss.backward()  # type: ignore[no-untyped-call]
        assert place.grad is not None
        with torch.no_grad():
            gap = torch.maximum(place.grad * place, place.grad * (place - 1)).sum()
            best, certified = min(best, float(loss.detach())), max(certified, float(loss.detach() - gap))
            with own_steps():
                adam.step()
            place.clamp_(0, 1)
    return best, certified
