"""Where values that are not finite come from, in words."""

from __future__ import annotations

from debugkit.probes.loop_record import Blame

_LATER = "the loss was looked at too late to say where from"
_ANOMALY = "run with `torch.autograd.set_detect_anomaly(True)` to find the operation"
_HUGE = 6e4
_AT_ZERO = "a logarithm, root or division at zero, or an overflow"


def told(blame: Blame | None, steps: int) -> tuple[str, str]:
    """The cause and the hint.

    Args:
        blame: what was found.
        steps: optimizer steps before.
    """
    if blame is None or blame.place == "unknown":
        return _LATER, _ANOMALY
    if blame.place == "weights":
        return _weights(blame, steps)
    if blame.place == "batch":
        return (
            "the model was given a batch that has values that are not finite",
            "look at how this batch was made",
        )
    if blame.place == "between":
        return (
            f"all weights were finite, and so was what `{blame.before}` gave, but `{blame.module}` was given values "
            "that are not",
            f"look at what is computed between `{blame.before}` and `{blame.module}`: {_AT_ZERO}",
        )
    if blame.place == "module":
        inner = ", in its own code," if blame.own_code else ""
        if blame.own_code and blame.before is not None:
            inner = f", in its own code before `{blame.before}`,"
        huge = f", from values up to {blame.largest:.3g}" if blame.largest > _HUGE else ""
        return (
            f"all weights were finite, and `{blame.module}`{inner} gave the first values that are not{huge}",
            "look at the steps before, where values grew: a lower learning rate or clipping keeps them small"
            if huge
            else f"look at what `{blame.module}` computes: {_AT_ZERO}",
        )
    return (
        "weights and outputs of the model were finite, so the loss itself broke",
        "look at the loss: a logarithm, root or division at zero, targets that are not finite, or a mean of nothing",
    )


def _weights(blame: Blame, steps: int) -> tuple[str, str]:
    ends = f"`{blame.weights[0]}`"
    if blame.bad > 1:
        ends += f" to `{blame.weights[-1]}`"
    cause = f"update {steps} left {blame.bad} of {blame.parameters} parameters not finite ({ends})"
    if not steps:
        cause = f"{blame.bad} of {blame.parameters} parameters were not finite before the first step ({ends})"
        return cause, "look at how these weights are made or loaded"
    if blame.gradients is False:
        cause += ", by gradients that were not finite"
        where = "the loss" if blame.bad == blame.parameters else f"what follows `{blame.weights[-1]}`"
        return (
            cause,
            f"look at the backward of {where}: the slope of a root, norm or logarithm at zero, or an overflow",
        )
    if blame.gradients:
        return (
            cause + ", by gradients that were finite",
            "lower the learning rate; check the optimizer's epsilon",
        )
    return cause, f"lower the learning rate or clip the gradients; {_ANOMALY}"
