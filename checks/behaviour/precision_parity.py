"""A step in low precision that is not the step in float32."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated

import torch
from pydantic import Field
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from debugkit import Finding, Target, check, fail, note, warn
from debugkit.probes.precision_passes import PrecisionPasses
from debugkit.testing import blobs, mlp


@check
def precision_parity(
    passes: PrecisionPasses,
    *,
    min_cosine: Annotated[
        float,
        Field(gt=0, lt=1, description="outputs and gradients may differ in direction down to this cosine"),
    ] = 0.9,
    max_activation: Annotated[
        float, Field(gt=0, description="largest activation in float16, whose largest number is 65,504")
    ] = 16_000.0,
) -> Iterator[Finding]:
    """The configured precision (autocast, or the weights' own) changes what the step computes.

    The step runs on two rows in low precision and in float32, without dropout. Where the directions of outputs or
    gradients differ, float32 is run once more with weights, inputs and activations moved by the low precision's rounding: what
    moves as far there is how sensitive the model is, not a mistake.

    ## Why is this bad?
    float16 ends at 65,504: one activation beyond it is infinite, and the loss is NaN some layers later. Small
    constants vanish (`1e-8` is 0 in float16), and bfloat16 has 8 bits: positions above 256 fall together, sums stop
    growing. The loss still falls, and the model is worse than it would be in float32.

    ## What to do
    Compute positions, sums, norms and softmax in float32 (`torch.autocast(..., enabled=False)` around them, or
    `.float()`); choose an epsilon that the precision holds; scale what grows beyond float16, or use bfloat16.

    ## Known limits
    Without a configured precision, nothing is run. Outputs that are drawn at random are not compared, and gradients
    in float16 are compared at one loss scale. Weights in low precision over 256 MiB are left out.

    ## References
    - https://docs.pytorch.org/docs/stable/amp.html
    - https://arxiv.org/abs/1710.03740
    """
    name = str(passes.dtype).removeprefix("torch.")
    broken = next(
        (
            module
            for module, reading in passes.low.items()
            if not reading.finite and module in passes.full and passes.full[module].finite
        ),
        None,
    )
    low, full = passes.losses
    if broken is not None or (math.isfinite(full) and not math.isfinite(low)):
        yield _not_finite(passes, broken, name)
        return
    yield from _direction(passes, name, min_cosine)
    if passes.dtype is torch.float16 and passes.low:
        module, reading = max(passes.low.items(), key=lambda item: item[1].largest)
        if reading.largest > max_activation:
            yield warn(
                f"`{module}` gives values up to {reading.largest:,.0f}, and float16 ends at 65,504: a few more steps and "
                "they overflow",
                where=module,
                hint="scale them down, normalise before, or train in bfloat16",
                largest=reading.largest,
            )


def _not_finite(passes: PrecisionPasses, module: str | None, name: str) -> Finding:
    if module is None:
        low, full = passes.losses
        return fail(
            f"the loss is {low} in {name} and {full:.4g} in float32",
            hint="compute the loss in float32: `outputs.float()`",
            loss=full,
        )
    reading = passes.full[module]
    largest = torch.finfo(passes.dtype).max
    cause = (
        f"float32 has values up to {reading.largest:,.0f} there, and {name} ends at {largest:,.0f}"
        if reading.largest > largest
        else f"float32 has values up to {reading.largest:.3g} there"
    )
    return fail(
        f"`{module or 'the model'}` is the first module whose output is not finite in {name}: {cause}",
        where=module,
        hint="scale its inputs or weights down, or train in bfloat16"
        if reading.largest > largest
        else f"look for a constant that {name} rounds to 0 or infinity, such as an epsilon or a mask value",
        largest=reading.largest,
    )


def _direction(passes: PrecisionPasses, name: str, min_cosine: float) -> Iterator[Finding]:
    told = []
    if not passes.samples:
        for what, cosine, nudged in (
            ("outputs", passes.outputs, passes.nudged_outputs),
            ("gradients", passes.gradients, passes.nudged_gradients),
        ):
            if cosine is not None:
                told.append(f"{what} {cosine:.4f}")
            if cosine is not None and nudged is not None and cosine < min_cosine:
                if 1 - cosine > 10 * (1 - nudged) and nudged > (1 + min_cosine) / 2:
                    yield fail(
                        f"the {what} in {name} point elsewhere than in float32: cosine {cosine:.3f}, where rounding "
                        f"alone leaves {nudged:.4f}",
                        hint=f"find the operation that needs more bits than {name} has (positions, long sums, differences "
                        "of large numbers), and run it in float32",
                        cosine=cosine,
                        rounding=nudged,
                    )
                    return
                told[-1] += f" (rounding alone leaves {nudged:.4f})"
    if told:
        yield note(f"{name} against float32 on {passes.rows} samples: cosine of {', '.join(told)}")
    else:
        yield note(f"{name} gives finite values on {passes.rows} samples; directions can't be compared")


class _Scaled(nn.Module):
    """A linear layer whose outputs are ``scale`` times as large, and a network behind their norm."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.first, self.norm, self.body = nn.Linear(8, 8), nn.LayerNorm(8), mlp()
        with torch.no_grad():
            self.first.weight.mul_(scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.body(self.norm(self.first(x)))
        return logits


class _Clock(nn.Module):
    """Seconds ``[batch]`` to logits, by way of their sines at eight frequencies."""

    def __init__(self, by_product: bool) -> None:
        super().__init__()
        self.frequencies = nn.Buffer(2.0 ** -torch.arange(8.0))
        self.by_product = by_product
        self.body = mlp()

    def forward(self, seconds: torch.Tensor) -> torch.Tensor:
        column = seconds[:, None].float()
        angles = column @ self.frequencies[None] if self.by_product else column * self.frequencies
        logits: torch.Tensor = self.body(angles.float().sin())
        return logits


def _seconds() -> DataLoader[tuple[torch.Tensor, ...]]:
    seconds = torch.randint(1000, 4000, (64,), generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(seconds, (seconds.float().sin() > 0).long()), batch_size=16, shuffle=True)


def _target(model: nn.Module, precision: str | None) -> Target:
    return Target(model, blobs(), nn.CrossEntropyLoss(), precision=precision)


def good() -> Target:
    return _target(_Scaled(1.0), "bf16")


def good_half() -> Target:
    return _target(_Scaled(1.0), "fp16")


def bad_overflow() -> Target:
    return _target(_Scaled(1e6), "fp16")


def bad_little_head_room() -> Target:
    return _target(_Scaled(1e4), "fp16")


def good_angles_in_float32() -> Target:
    return Target(_Clock(by_product=False), _seconds(), nn.CrossEntropyLoss(), precision="bf16")


def bad_angles_in_bfloat16() -> Target:
    return Target(_Clock(by_product=True), _seconds(), nn.CrossEntropyLoss(), precision="bf16")
