"""Custom autograd functions whose backward is not the derivative of their forward."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from debugkit import Finding, Target, check, fail, note, warn
from debugkit.probes.custom_backward import CustomBackward, FunctionGradient
from debugkit.testing import blobs

_NOTES = {
    "surrogate": "`forward` of `{name}` is flat or has steps, and `backward` gives a gradient of its own",
    "shaped": "`backward` of `{name}` is not linear in what it gets, so it shapes gradients on purpose",
    "identity": "`{name}` changes no value, so its `backward` is there to change the gradient",
    "random": "`{name}` draws random numbers, so its gradient was not compared",
    "unjudged": "the gradient of `{name}` was not compared",
}
_ZERO = 1e-6


@check
def gradient_correctness(target: Target, custom: CustomBackward) -> Iterator[Finding]:
    """The backward of a custom autograd function is not the derivative of its forward.

    Each `torch.autograd.Function` of the user's own is called alone, on what it was given in a forward pass, in double
    precision where it takes that. In random directions, what its `backward` gives is held against differences of its
    `forward`.

    ## Why is this bad?
    The loss still falls, more slowly or to a worse place, since a wrong gradient often points roughly downhill. A
    `backward` that does not multiply by what it is given is right only while the function is the last thing before
    the loss, and ignores loss weights, gradient accumulation and loss scaling.

    ## What to do
    Compare with `torch.autograd.gradcheck` in double precision, and derive the gradient again: every input's gradient
    is the incoming gradient times the derivative.

    ## Known limits
    What is meant to differ is a note: straight-through estimators, surrogate gradients of spiking neurons, gradient
    reversal and clipping. Functions of installed packages, functions in reentrant checkpoints, and hooks on
    gradients are not judged. Parameters that a function reads without taking them as arguments are not compared.

    ## References
    - https://docs.pytorch.org/docs/stable/notes/extending.html
    - https://docs.pytorch.org/docs/stable/generated/torch.autograd.gradcheck.gradcheck.html
    """
    right = [one for one in custom.functions if one.verdict == "right"]
    yield from (_finding(one) for one in custom.functions if one.verdict != "right")
    if right:
        names = ", ".join(f"`{one.name}`" for one in right)
        yield note(
            f"the gradient of {names} agrees with differences to {max(one.error for one in right):.1g}",
            functions=len(right),
        )
    if hooks := _hooks(target.model):
        yield note(f"{hooks} hooks change gradients, which is not judged", hooks=hooks)


def _finding(one: FunctionGradient) -> Finding:
    hint = "derive `backward` again, and test it with `torch.autograd.gradcheck` in double precision"
    if one.verdict == "wrong":
        return fail(
            f"`backward` of `{one.name}` is not the derivative of its `forward`: for argument {one.input + 1} it is off "
            f"by {one.error:.0%} along random directions, and by no constant factor",
            where=one.name,
            location=one.location,
            hint=hint,
            error=one.error,
        )
    if one.verdict == "ignores":
        return fail(
            f"`backward` of `{one.name}` gives the same gradient whatever it gets from behind: loss weights and all "
            "that follows it are ignored",
            where=one.name,
            location=one.location,
            hint="multiply the derivative by `grad_output`",
        )
    if one.verdict == "scaled" and one.factor > _ZERO:
        return warn(
            f"`backward` of `{one.name}` gives {one.factor:.3g} times the derivative of its `forward` for argument "
            f"{one.input + 1}",
            where=one.name,
            location=one.location,
            hint="look for a factor that was left out, or scale gradients in a function of their own",
            factor=one.factor,
        )
    if one.verdict == "scaled":
        return note(
            f"`backward` of `{one.name}` turns the gradient around (times {one.factor:.3g})", where=one.name
        )
    told = _NOTES[one.verdict].format(name=one.name)
    return note(f"{told}: {one.reason}" if one.reason else told, where=one.name, location=one.location)


def _hooks(model: torch.nn.Module) -> int:
    """How many hooks on gradients the user's program has registered."""
    holders: list[Any] = [*model.parameters(), *model.modules()]
    return sum(len(getattr(one, "_backward_hooks", None) or ()) for one in holders)


class _Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, *grad: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        gradient: torch.Tensor = 3 * x**2 * grad[0]
        return gradient


class _WrongCube(_Cube):
    @staticmethod
    def backward(ctx: Any, *grad: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        gradient: torch.Tensor = 3 * x * grad[0]
        return gradient


class _Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.sign()

    @staticmethod
    def backward(ctx: Any, *grad: torch.Tensor) -> torch.Tensor:
        return grad[0]


class _Net(torch.nn.Module):
    def __init__(self, function: type[torch.autograd.Function]) -> None:
        super().__init__()
        self.first, self.last = torch.nn.Linear(8, 16), torch.nn.Linear(16, 2)
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.function.apply(self.first(x))  # type: ignore[no-untyped-call]
        logits: torch.Tensor = self.last(hidden)
        return logits


def good() -> Target:
    return Target(_Net(_Cube), blobs(), torch.nn.CrossEntropyLoss())


def good_straight_through() -> Target:
    return Target(_Net(_Sign), blobs(), torch.nn.CrossEntropyLoss())


def bad_derivative() -> Target:
    return Target(_Net(_WrongCube), blobs(), torch.nn.CrossEntropyLoss())
