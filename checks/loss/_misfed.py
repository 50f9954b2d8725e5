"""Loss calls that `logits-vs-probs` reports, which other checks leave to it."""

from __future__ import annotations

from debugkit import Unavailable
from debugkit.probes.training_step import TrainingStep

from .logits_vs_probs import logits_vs_probs


def is_misfed(step: TrainingStep, name: str, location: str | None) -> bool:
    """Whether a loss call got the wrong kind of input: probabilities for logits, say.

    Args:
        step: the traced step.
        name: the loss function.
        location: the source line that called it.
    """
    try:
        findings = [found for found in logits_vs_probs(step) if found.level != "note"]
    except Unavailable:
        return False
    if findings and step.double_softmax:
        return True
    return any(found.location == location and f"`{name}`" in found.message for found in findings)
