"""Programs with a mistake in their loop, each found by its check, and their healthy twins, which are quiet.

Each prints and ends the same, bit for bit, with and without the watch.
"""

from __future__ import annotations

import pytest

from .programs import Outcome, plain, watched

BROKEN = [
    ("classifier.py", "no zero_grad", "zero-grad", "fail", 3),
    ("classifier.py", "zero between", "zero-grad", "fail", 3),
    ("classifier.py", "zero each, step rarely", "zero-grad", "warn", 3),
    ("classifier.py", "no step", "optimizer-step", "fail", 0),
    ("classifier.py", "two steps", "optimizer-step", "fail", 6),
    ("classifier.py", "body not trained", "optimizer-step", "fail", 3),
    ("classifier.py", "head swapped", "weights-moving", "fail", 3),
    ("classifier.py", "lr zero", "weights-moving", "fail", 10),
    ("classifier.py", "scheduler never", "scheduler-step", "warn", 80),
    ("classifier.py", "scheduler first", "scheduler-step", "warn", 3),
    ("classifier.py", "schedule per batch", "scheduler-step", "warn", 10),
    ("classifier.py", "schedule per epoch", "scheduler-step", "warn", 80),
    ("classifier.py", "decay per batch", "scheduler-step", "warn", 32),
    ("classifier.py", "no eval", "mode-switches", "fail", 20),
    ("classifier.py", "eval never undone", "mode-switches", "fail", 20),
    ("classifier.py", "eval from the start", "mode-switches", "fail", 3),
    ("classifier.py", "graphs in validation", "mode-switches", "warn", 20),
    ("classifier.py", "gradients left off", "mode-switches", "fail", 16),
    ("classifier.py", "clip after step", "gradient-clipping", "fail", 3),
    ("classifier.py", "clip before backward", "gradient-clipping", "fail", 3),
    ("classifier.py", "clip tiny", "gradient-clipping", "warn", 20),
    ("classifier.py", "constant loss", "loss-trend", "warn", 20),
    ("classifier.py", "nan", "loss-trend", "fail", 20),
    ("classifier.py", "nan in weights", "loss-trend", "fail", 20),
    ("classifier.py", "graphs kept", "memory-growth", "warn", 20),
    ("classifier.py", "best is live", "best-checkpoint", "fail", 80),
    ("classifier.py", "best is saved live", "best-checkpoint", "fail", 80),
    ("classifier.py", "trains on validation", "eval-data", "fail", 15),
    ("classifier.py", "steps in validation", "eval-data", "fail", 20),
    ("classifier.py", "validates on train", "eval-data", "fail", 80),
    ("gan.py", "critic not cleared", "zero-grad", "fail", 6),
    ("gan.py", "generator not cleared", "zero-grad", "fail", 6),
    ("gan.py", "generator steps early", "zero-grad", "fail", 6),
    ("gan.py", "generator never steps", "optimizer-step", "fail", 32),
    ("gan.py", "wrong parameters", "optimizer-step", "fail", 6),
    ("language_model.py", "not cleared", "zero-grad", "fail", 3),
    ("language_model.py", "step again", "optimizer-step", "fail", 6),
    ("language_model.py", "clip to nothing", "gradient-clipping", "warn", 20),
    ("language_model.py", "losses kept", "memory-growth", "warn", 20),
    ("language_model.py", "no eval", "mode-switches", "warn", 20),
    ("language_model.py", "eval never undone", "mode-switches", "fail", 20),
    ("language_model.py", "rate", "loss-trend", "warn", 20),
    ("mixed_precision.py", "cleared each batch", "zero-grad", "warn", 3),
    ("mixed_precision.py", "not cleared", "zero-grad", "fail", 3),
    ("mixed_precision.py", "clip while scaled", "gradient-clipping", "fail", 3),
    ("mixed_precision.py", "overflow", "loss-scaler", "fail", 0),
    ("mixed_precision.py", "tail", "optimizer-step", "warn", 10),
    ("plain_steps.py", "plain step", "loss-scaler", "fail", 3),
    ("small_gpt.py", "not cleared", "zero-grad", "fail", 3),
    ("small_gpt.py", "cleared in between", "zero-grad", "fail", 3),
    ("small_gpt.py", "no step", "optimizer-step", "fail", 0),
    ("small_gpt.py", "detached", "optimizer-step", "fail", 3),
    ("small_gpt.py", "schedule short", "scheduler-step", "warn", 10),
    ("small_gpt.py", "no schedule", "scheduler-step", "warn", 60),
    ("small_gpt.py", "no eval", "mode-switches", "warn", 32),
    ("small_gpt.py", "train forgotten", "mode-switches", "fail", 32),
]

IN_OBJECTS = {
    "head swapped": {"optimizer-coverage": "fail"},
    "lr zero": {"learning-rate": "fail"},
    "eval from the start": {"eval-mode": "fail"},
    "constant loss": {"missing-gradients": "fail"},
    "trains on validation": {"loader-randomness": "warn"},
    "rate": {"learning-rate": "warn"},
    "overflow": {"gradient-scale": "fail"},
}
"""What the checklist says of the same mistake on the first iteration, where the objects show it."""

LIBRARIES = [
    ("trainer.py", "", {}),
    ("trainer.py", "eval in the step", {"mode-switches": "fail"}),
    ("trainer.py", "clears in the step", {"zero-grad": "fail"}),
    ("trainer.py", "other model", {"optimizer-step": "fail", "optimizer-coverage": "fail"}),
    ("accelerated.py", "", {}),
    ("accelerated.py", "clears first", {"zero-grad": "fail"}),
    ("accelerated.py", "not cleared", {"zero-grad": "fail"}),
    ("accelerated.py", "unprepared", {"scheduler-step": "warn"}),
]

HEALTHY = [
    ("classifier.py", ""),
    ("gan.py", ""),
    ("language_model.py", ""),
    ("language_model.py", "no clip"),
    ("mixed_precision.py", ""),
    ("mixed_precision.py", "off"),
    ("plain_steps.py", ""),
    ("small_gpt.py", ""),
    ("healthy_mix.py", "mean teacher"),
    ("healthy_mix.py", "averaged weights"),
    ("healthy_mix.py", "folds"),
    ("healthy_mix.py", "adversarial"),
    ("healthy_mix.py", "closure"),
    ("healthy_mix.py", "two loaders"),
    ("healthy_mix.py", "by hand"),
    ("healthy_mix.py", "reinforce"),
    ("healthy_mix.py", "batch loss plateau"),
    ("healthy_mix.py", "penalty"),
    ("healthy_mix.py", "checkpointing"),
    ("healthy_mix.py", "unfreezing"),
    ("healthy_mix.py", "saved and copied"),
    ("healthy_mix.py", "compiled"),
    ("healthy_more.py", "train accuracy too"),
    ("healthy_more.py", "test never read"),
    ("healthy_more.py", "no validation"),
    ("healthy_more.py", "critic"),
    ("healthy_more.py", "variational"),
    ("healthy_more.py", "deep q"),
    ("healthy_more.py", "meta"),
    ("healthy_more.py", "sharpness aware"),
    ("healthy_more.py", "frozen norms"),
    ("healthy_more.py", "two phases"),
    ("healthy_more.py", "moving average"),
    ("healthy_more.py", "contrastive"),
    ("healthy_more.py", "step global, passes not"),
    ("healthy_more.py", "validation within a pass"),
    ("healthy_more.py", "embedding, sparse and unused"),
    ("healthy_more.py", "experts"),
    ("healthy_more.py", "pretraining, then fine-tuning"),
    ("healthy_more.py", "head only, body not frozen"),
    ("healthy_more.py", "multi task"),
    ("healthy_more.py", "recurrent"),
    ("healthy_more.py", "by layer"),
    ("healthy_more.py", "warm up from zero"),
    ("healthy_more.py", "hinge that is solved"),
    ("healthy_more.py", "silencing step"),
    ("healthy_more.py", "skips bad batches"),
    ("healthy_more.py", "half"),
    ("healthy_more.py", "compiled for real"),
]


def run(script: str, kind: str) -> Outcome:
    """A watched program, which did the same as without a watch."""
    seen, alone = watched(script, kind), plain(script, kind)
    assert (seen.printed, seen.error) == (alone.printed, alone.error)
    assert seen.printed or seen.error != "None"
    return seen


@pytest.mark.parametrize(("script", "mistake", "check", "status", "latest"), BROKEN)
def test_the_mistake_is_found(script: str, mistake: str, check: str, status: str, latest: int) -> None:
    outcome = run(script, mistake)
    assert outcome.loud == {check: status, **IN_OBJECTS.get(mistake, {})}
    assert outcome.first_seen[check] <= latest


@pytest.mark.parametrize(("script", "kind"), HEALTHY)
def test_the_healthy_program_is_quiet(script: str, kind: str) -> None:
    outcome = run(script, kind)
    assert outcome.error == "None"
    assert not outcome.loud
    assert outcome.report is not None
    assert all("preflight" in notice for notice in outcome.report.notices)


@pytest.mark.parametrize(("script", "mistake", "loud"), LIBRARIES)
def test_loops_inside_of_libraries(script: str, mistake: str, loud: dict[str, str]) -> None:
    for package in ("transformers", "accelerate", "peft"):
        pytest.importorskip(package)
    assert run(script, mistake).loud == loud
