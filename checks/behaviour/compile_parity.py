"""Outputs or gradients that another backend computes otherwise."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from debugkit import Finding, Target, check, fail, note
from debugkit.probes.backend_passes import BackendPasses, Difference
from debugkit.testing import blobs, mlp, settings


@check
def compile_parity(passes: BackendPasses) -> Iterator[Finding]:
    """Compiled, or with another attention backend, the model gives other outputs or gradients.

    Only on request: `--set other-backend.name=inductor` (any backend of `torch.compile`; `aot_eager` needs no C++
    compiler and is quick), or `eager-attention`, `sdpa-attention` for a transformers model. The model runs in eval
    mode on two rows, as it is and by the other backend; the parts of a compiled model run eagerly for the comparison.

    ## Why is this bad?
    What was debugged is not what is trained. Compilers and fused kernels have bugs, and code that leans on side
    effects, on Python state or on data-dependent branches can be traced wrongly; a mask that one attention backend
    ignores shows only there. The loss still falls.

    ## What to do
    Find the module with `torch.compile(module)` on one part at a time, put `torch._dynamo.disable` on it, and report
    the difference; or train with the backend that was checked.

    ## Known limits
    Compiling takes tens of seconds and is never done unasked, also where the model is compiled. Differences in train
    mode (dropout, batch statistics) are not seen. Models that differ from themselves when they run twice are not
    judged.

    ## References
    - https://docs.pytorch.org/docs/stable/generated/torch.compile.html
    - https://docs.pytorch.org/docs/stable/torch.compiler_troubleshooting.html
    """
    name = passes.backend
    if passes.failure is not None:
        yield fail(
            f"the model runs as it is and raises with `{name}`: {passes.failure}",
            hint="train without it, or keep the part that raises out with `torch._dynamo.disable`",
        )
        return
    if passes.other_shapes:
        yield fail(
            f"`{passes.other_shapes[0]}` has another shape with `{name}`",
            where=passes.other_shapes[0],
            hint="look for branches that depend on Python state or on the data",
        )
        return
    allowed = max(passes.tolerance, 10 * passes.repeats)
    if passes.repeats > passes.tolerance:
        yield note(
            f"the model differs from itself by {passes.repeats:.2g} when it runs twice, so `{name}` is not judged"
        )
        return
    found = False
    for what, differences in (("outputs", passes.outputs), ("gradients", passes.gradients)):
        worst = max(differences, key=lambda one: one.error, default=None)
        if worst is not None and worst.error > allowed:
            found = True
            yield _differs(what, worst, differences, allowed, name)
            break
    if not found:
        errors = [one.error for one in (*passes.outputs, *passes.gradients)]
        yield note(
            f"`{name}` gives the same {len(passes.outputs)} outputs and {len(passes.gradients)} gradients on {passes.rows} "
            f"samples (relative error {max(errors, default=0.0):.1g})",
            error=max(errors, default=0.0),
        )


def _differs(
    what: str, worst: Difference, differences: tuple[Difference, ...], allowed: float, name: str
) -> Finding:
    count = sum(one.error > allowed for one in differences)
    return fail(
        f"{count} of {len(differences)} {what} differ with `{name}`, most `{worst.name}`: the relative error is "
        f"{worst.error:.2g}, and the order of sums explains {allowed:.0e}",
        where=worst.name,
        hint="compile one part at a time to find it; train with the backend that was checked",
        error=worst.error,
    )


class _Attending(nn.Module):
    """Rows ``[batch, 8]`` as four tokens that attend to each other, by one of two implementations."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale, self.implementation = scale, "sdpa"
        self.mix, self.head = nn.Linear(2, 6), nn.Linear(8, 2)

    def set_attn_implementation(self, name: str) -> None:
        self.implementation = name

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = self.mix(x.view(-1, 4, 2)).chunk(3, -1)
        if self.implementation == "sdpa":
            mixed = nn.functional.scaled_dot_product_attention(query, key, value)
        else:
            mixed = (query @ key.mT * self.scale).softmax(-1) @ value
        logits: torch.Tensor = self.head(mixed.flatten(1))
        return logits


class _Branching(nn.Module):
    """Normalises its inputs, but not while it is compiled."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.body = nn.LayerNorm(8), mlp()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.body(x if torch.compiler.is_compiling() else self.norm(x))
        return logits


def _target(model: nn.Module) -> Target:
    return Target(model, blobs(), nn.CrossEntropyLoss())


@settings("other-backend.name=eager-attention")
def good() -> Target:
    return _target(_Attending(2**-0.5))


@settings("other-backend.name=eager-attention")
def bad_attention_without_its_scale() -> Target:
    return _target(_Attending(1.0))


@settings("other-backend.name=eager")
def bad_branch_on_compiling() -> Target:
    return _target(_Branching())
