"""Where values that are not finite come from, when a loss is found not to be."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from debugkit.data.batch import tensors
from debugkit.probes.loop_record import Blame
from debugkit.sandbox import Sandbox
from debugkit.target import Target
from debugkit.watch.latest_calls import SeenCall
from debugkit.watch.names import Names
from debugkit.watch.tensors import is_plain

_LISTED = 8


class _Found(Exception):  # noqa: N818 - ends the pass
    pass


def blame(calls: Sequence[SeenCall], optimizers: Iterable[torch.optim.Optimizer], names: Names) -> Blame:
    """What was not finite first: weights, inputs, what a module gave, or else the loss.

    Args:
        calls: the outermost calls that the loss was computed from, oldest first.
        optimizers: what may have broken weights.
        names: what parameters are called.
    """
    modules = [module for call in calls if (module := call.module()) is not None]
    parameters = list({id(p): p for module in modules for p in module.parameters()}.values())
    if not parameters:
        return Blame("unknown")
    if bad := [p for p in parameters if not _holds(p)]:
        return Blame(
            "weights",
            weights=tuple(names.of(p) for p in (bad if len(bad) <= _LISTED else (bad[0], bad[-1]))),
            bad=len(bad),
            parameters=len(parameters),
            gradients=_gradients_were_finite(bad, optimizers),
        )
    before: str | None = None
    for call in calls:
        module = call.module()
        if module is None:
            continue
        given = _sound((call.args, call.kwargs))
        found = _first_bad(module, call, names) if given else Blame("batch")
        if found is not None and found.place == "batch" and before is not None:
            return Blame("between", type(module).__name__, before=before)
        if found is not None:
            return found
        before = type(module).__name__
    return Blame("loss")


def _first_bad(model: torch.nn.Module, call: SeenCall, names: Names) -> Blame | None:
    """The first module whose inputs are finite and outputs are not.

    The model runs once more in a sandbox, so that training goes on as before. Minus infinity alone is what masks are
    made of.
    """
    inside = {module: name or type(model).__name__ for name, module in model.named_modules()}
    given = {tensor.data_ptr() for tensor in _plain((call.args, call.kwargs))}
    found: list[Blame] = []
    entered: list[str] = []

    def look(module: torch.nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        inputs = _plain((args, kwargs))
        if not _sound(inputs):
            entered.append(inside[module])
            return
        if _sound(output):
            return
        if any(tensor.data_ptr() in given for tensor in inputs if not _holds(tensor)):
            found.append(Blame("batch"))
        else:
            own = [*inputs, *module.parameters(recurse=False)]
            found.append(
                Blame(
                    "module",
                    inside[module],
                    own_code=next(module.children(), None) is not None,
                    before=entered[0] if entered else None,
                    largest=max(
                        (float(tensor.detach().abs().max()) for tensor in own if tensor.numel()), default=0.0
                    ),
                )
            )
        raise _Found

    with Sandbox(Target(model)) as sandbox, sandbox.probe():
        handles = [module.register_forward_hook(look, with_kwargs=True) for module in inside]
        try:
            with torch.no_grad(), call.autocast():
                model(*call.args, **call.kwargs)
        except _Found:
            pass
        except Exception:  # the user's program may raise anything
            return Blame("unknown")
        finally:
            for handle in handles:
                handle.remove()
    return found[0] if found else None


def _gradients_were_finite(
    bad: Sequence[torch.Tensor], optimizers: Iterable[torch.optim.Optimizer]
) -> bool | None:
    """Whether the averages that optimizers keep of these parameters' gradients are; ``None`` if none are kept."""
    kept = [
        state
        for optimizer in optimizers
        for parameter in bad
        for state in _plain(list(optimizer.state.get(parameter, {}).values()))
        if state.shape == parameter.shape and state.dim()
    ]
    return all(map(_holds, kept)) if kept else None


def _plain(value: Any) -> list[torch.Tensor]:
    return [tensor for _, tensor in tensors(value) if is_plain(tensor) and tensor.numel()]


def _holds(tensor: torch.Tensor) -> bool:
    return not is_plain(tensor) or bool(torch.isfinite(tensor).all())


def _sound(value: Any) -> bool:
    """Whether nothing is NaN or plus infinity."""
    return all(
        bool((tensor.abs() if tensor.is_complex() else tensor).detach().max() < torch.inf)
        for tensor in _plain(value)
    )
