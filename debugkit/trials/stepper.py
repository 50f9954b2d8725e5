"""The user's optimizer, stepped on copies of one tensor at a time."""

from __future__ import annotations

import copy
import inspect
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from debugkit.errors import one_line
from debugkit.sandbox import own_steps
from debugkit.trials.schedule import twin, unwrap
from debugkit.trials.trial import RefusedError


class Stepper:
    """Steps of an optimizer's class with its own settings and state; neither it nor the parameters change.

    Args:
        optimizer: a torch optimizer, or a wrapper around one.
        rates: the learning rate for each of its parameter groups.

    Raises:
        RefusedError: it is no torch optimizer, or its step needs an argument, such as a closure.
    """

    def __init__(self, optimizer: Any, rates: Sequence[float]) -> None:
        self._original = unwrap(optimizer)
        name = type(self._original).__name__
        if not isinstance(self._original, torch.optim.Optimizer):
            raise RefusedError(f"`{name}` is no torch optimizer")
        needed = [
            p.name
            for p in list(inspect.signature(type(self._original).step).parameters.values())[1:]
            if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        ]
        if needed:
            raise RefusedError(f"`{name}.step` needs a `{needed[0]}`")
        self._rates = rates

    def step(
        self,
        group: int,
        values: torch.Tensor,
        gradient: torch.Tensor | None,
        *,
        of: torch.Tensor | None = None,
        steps: int = 1,
        **changes: Any,
    ) -> torch.Tensor:
        """What some values are after steps with the same gradient.

        Args:
            group: the parameter group whose settings count.
            values: the values before, which stay as they are.
            gradient: the gradient; ``None`` for a tensor that got none.
            of: the parameter whose optimizer state counts; none by default.
            steps: how many steps to take.
            changes: settings of the group to change.

        Raises:
            RefusedError: the optimizer's step raised.
        """
        moved = torch.nn.Parameter(values.detach().clone(), requires_grad=values.is_floating_point())
        moved.grad = None if gradient is None else gradient.detach().clone()
        double = twin(self._original, set())
        settings = {
            key: _copied(value)
            for key, value in self._original.param_groups[group].items()
            if key != "params"
        }
        rate = settings.get("lr")
        if isinstance(rate, torch.Tensor):
            rate.fill_(self._rates[group])
        elif rate is not None:
            settings["lr"] = self._rates[group]
        double.param_groups = [{**settings, **changes, "params": [moved]}]
        double.state = defaultdict(dict)
        if of is not None and (state := self._original.state.get(of)):
            double.state[moved] = _state_for(state, of, moved)
        with own_steps():
            for _ in range(steps):
                try:
                    double.step()
                except Exception as error:
                    name = type(self._original).__name__
                    raise RefusedError(f"`{name}.step()` raised: {one_line(error)}") from error
        return moved.detach()


def _copied(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    return copy.copy(value) if isinstance(value, (list, dict)) else value


def _state_for(state: Mapping[str, Any], of: torch.Tensor, moved: torch.Tensor) -> dict[str, Any]:
    """A parameter's optimizer state for a copy of it, in the copy's precision where it had the parameter's."""
    copied = {key: _copied(value) for key, value in state.items()}
    for key, value in copied.items():
        if isinstance(value, torch.Tensor) and value.ndim and value.dtype == of.dtype != moved.dtype:
            copied[key] = value.to(moved.dtype)
    return copied
