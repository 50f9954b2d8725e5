"""When samples that were not memorised prove nothing, and the words for a run."""

from __future__ import annotations

from debugkit import Unavailable
from debugkit.probes.overfit import OverfitRuns
from debugkit.probes.training_step import TrainingStep
from debugkit.trials.curve import Curve

_SQUASHED = frozenset({"softmax", "sigmoid", "hardsigmoid"})
_WRONG_PRODUCERS = {
    "logits": _SQUASHED | {"relu"},
    "binary logits": _SQUASHED | {"relu"},
    "log-probabilities": _SQUASHED,
}
_CHOICES = frozenset({"argmin", "argmax", "topk", "multinomial", "bernoulli", "sort", "argsort"})
_ROUNDING = 1e-12


def refuse_to_judge(runs: OverfitRuns, step: TrainingStep) -> None:
    """Raise ``Unavailable`` where a run that did not memorise the samples proves nothing, or proves it twice."""
    best, last = runs.best, runs.best.last
    if _misfed(step):
        raise Unavailable(
            f"not judged: AdamW stalls at {state(best)}, where a loss got the wrong kind of input; see `logits-vs-probs`"
        )
    judged = [run for run in runs.runs if run.outcome in ("stalled", "diverged")]
    cut_short = any(run.outcome == "out of time" for run in runs.runs)
    if len(judged) < 2 or cut_short or any(r.best >= best.best + 0.02 for r in runs.runs if r not in judged):
        unbounded = last.kind == "unknown" and last.value < min(0, best.first.value) and not cut_short
        raise Unavailable(
            f"not judged: the loss was still falling after {counted(len(best.scores), 'step')} of "
            f"{best.optimizer} ({from_to(best)}); "
            + (
                "no floor of this loss is known"
                if unbounded
                else "raise `overfit-runs.max-steps` or `overfit-runs.max-seconds`"
            )
        )
    if last.kind == "unknown" and best.best > 0.02:
        raise Unavailable(
            f"not judged: AdamW stalls at a loss of {last.value:.3g} ({from_to(best)}), and no floor of this loss "
            "is known"
        )
    if last.kind == "classes" and last.constant_errors - runs.unavoidable < max(2, 0.01 * last.counted):
        raise Unavailable(
            f"not judged: a constant answer gets all but {last.constant_errors} of {last.counted:,} targets right"
        )
    if last.kind == "values" and last.constant_value < _ROUNDING:
        raise Unavailable(
            f"not judged: the targets of {counted(runs.samples, 'sample')} are all the same, so a constant answer is right"
        )
    choice = next((cut for cut in step.cuts if cut.op in _CHOICES and cut.module is not None), None)
    if choice is not None and best.best > 0.05:
        raise Unavailable(
            f"not judged: AdamW stalls at {state(best)}, which a discrete choice in the model (`{choice.op}`"
            f"{f', {choice.location}' if choice.location else ''}) can cause"
        )
    if runs.trainable < 2 * runs.samples:
        raise Unavailable(
            f"not judged: {runs.trainable:,} trainable values can't memorise {counted(runs.samples, 'sample')}"
        )
    if 2 * runs.trainable < runs.values:
        raise Unavailable(
            f"not judged: AdamW stalls at {state(best)}, and only {runs.trainable:,} of {runs.values:,} values train, "
            "which need not be enough behind a frozen body"
        )


def _misfed(step: TrainingStep) -> bool:
    """Whether a loss gets probabilities where it expects logits, or raw scores for log-probabilities."""
    for call in step.loss_calls:
        if call.connected and (wrong := _WRONG_PRODUCERS.get(call.expects)):
            squashed = call.producers and all(producer.op in wrong for producer in call.producers)
            if squashed or (call.expects == "log-probabilities" and call.input.maximum > 1e-3):
                return True
    return bool(step.double_softmax)


def state(run: Curve) -> str:
    """Where a run ended."""
    last = run.last
    if last.kind == "classes":
        return f"{last.errors:,} wrong of {last.counted:,} and a loss of {last.value:.3g}"
    return f"a loss of {last.value:.3g}"


def from_to(run: Curve) -> str:
    """The loss at both ends of a run."""
    return f"loss {run.first.value:.3g} → {run.last.value:.3g}"


def counted(count: int, noun: str) -> str:
    """``16 samples``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
