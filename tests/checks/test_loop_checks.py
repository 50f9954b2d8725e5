"""The checks of the loop family on records made by hand: what they wait for, and what they leave to others."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from debugkit.probes.loop_record import (
    Blame,
    ClipLog,
    DataLog,
    DataPass,
    Evaluation,
    GraphLog,
    LoopRecord,
    LossLog,
    OptimizerLog,
    QuietCalls,
    ScalerLog,
    SchedulerLog,
    StepWindow,
    TimeLog,
)
from debugkit.registry import Registry
from debugkit.report import Result
from debugkit.runner import Run

WINDOW = StepWindow(
    step=1,
    location="train.py:9",
    backwards=1,
    carried=0,
    passes=1,
    gradients="live",
    stale=(),
    parameters=4,
    reused=False,
    discarded=0,
    wiped=False,
    still_scaled=False,
    norm=1.0,
)
OPTIMIZER = OptimizerLog(
    name="SGD",
    steps=20,
    windows=(WINDOW,) * 20,
    open_discarded=0,
    open_backwards=0,
    rates=((1, (0.1,)),),
    layers=(),
    modes=((1, "train"),),
    mode_dependent=("drop (Dropout p=0.1)",),
    evaluated_at=(),
    has_closure=False,
    by_hand=False,
    alone=True,
)
LOSS = LossLog("train.py:8", (1.0,) * 3, (0, 1, 2), None, None, None)
SCHEDULE = SchedulerLog("CosineAnnealingLR", "SGD", 20, 20, 0, 20, 2, False)
CLIP = ClipLog("train.py:10", 20, 1.0, (0.5,) * 20, 0, 0, 0)
PASS = DataPass(0, 10, 10, 10, ((("train", True), 10),), True, 0, 10)
DATA = (DataLog(0, "TensorDataset of 100", "train.py:3", True), DataLog(1, "TensorDataset of 20", None, True))


def windows(count: int, **changes: Any) -> LoopRecord:
    """Twenty steps, the last of them changed."""
    changed = (WINDOW,) * (20 - count) + (replace(WINDOW, **changes),) * count
    return LoopRecord(optimizers=(replace(OPTIMIZER, windows=changed),))


def losses(*values: float, **changes: Any) -> LoopRecord:
    bad = next((index for index, value in enumerate(values) if not math.isfinite(value)), None)
    log = LossLog("train.py:8", values, tuple(range(len(values))), bad, None, None)
    return LoopRecord(optimizers=(OPTIMIZER,), losses=(replace(log, **changes),))


def validation(mode: Any, grad: bool, **changes: Any) -> LoopRecord:
    calls = (((mode, grad), 5),)
    read = replace(PASS, data=1, batches=5, backwards=0, steps=0, model_calls=calls, after_step=20, graphs=0)
    return LoopRecord(optimizers=(OPTIMIZER,), passes=(PASS, replace(read, **changes)), data=DATA, steps=20)


NAN, INF = math.nan, math.inf

CASES = {
    "one stale step is not enough": ("zero-grad", windows(1, stale=("w",)), "pass"),
    "two stale steps": ("zero-grad", windows(2, stale=("w",)), "fail"),
    "one wiped step": ("zero-grad", windows(1, wiped=True, gradients="none"), "pass"),
    "two wiped steps": ("zero-grad", windows(2, wiped=True, gradients="none"), "fail"),
    "few discarded": ("zero-grad", windows(2, discarded=2), "pass"),
    "many discarded": ("zero-grad", windows(20, discarded=3), "warn"),
    "no step": ("zero-grad", LoopRecord(), "skip"),
    "one reused gradient": ("optimizer-step", windows(1, reused=True), "pass"),
    "two reused gradients": ("optimizer-step", windows(2, reused=True), "fail"),
    "accumulation that goes on": (
        "optimizer-step",
        windows(20, backwards=4, passes=4, carried=2),
        "pass",
    ),
    "two passes in one step, without accumulation": (
        "optimizer-step",
        windows(3, backwards=3, passes=3, carried=1),
        "pass",
    ),
    "a schedule in steps": (
        "scheduler-step",
        LoopRecord(optimizers=(OPTIMIZER,), schedulers=(SCHEDULE,)),
        "pass",
    ),
    "never, while it runs": (
        "scheduler-step",
        LoopRecord(finished=False, optimizers=(OPTIMIZER,), schedulers=(replace(SCHEDULE, steps=0),)),
        "pass",
    ),
    "never": (
        "scheduler-step",
        LoopRecord(optimizers=(OPTIMIZER,), schedulers=(replace(SCHEDULE, steps=0),)),
        "warn",
    ),
    "resumed": (
        "scheduler-step",
        LoopRecord(optimizers=(OPTIMIZER,), schedulers=(replace(SCHEDULE, steps=90, resumed=True),)),
        "pass",
    ),
    "validation in eval mode": ("mode-switches", validation("eval", False), "pass"),
    "validation in train mode": ("mode-switches", validation("train", False), "fail"),
    "one peek": ("mode-switches", validation("train", False, model_calls=((("train", False), 1),)), "pass"),
    "validation with graphs": ("mode-switches", validation("eval", True, graphs=5), "warn"),
    "a generator at each step": (
        "mode-switches",
        LoopRecord(optimizers=(OPTIMIZER,), quiet_calls=(QuietCalls("G", 20, 20, 20, ("drop",)),)),
        "pass",
    ),
    "now and then without gradients": (
        "mode-switches",
        LoopRecord(optimizers=(OPTIMIZER,), quiet_calls=(QuietCalls("G", 2, 2, 20, ("drop",)),)),
        "warn",
    ),
    "NaN to the end": ("loss-trend", losses(1.0, NAN, NAN, NAN), "fail"),
    "one infinite loss": ("loss-trend", losses(1.0, INF, 1.0, 1.0, 0.9), "warn"),
    "a scaler that finds its scale": (
        "loss-trend",
        replace(losses(INF, INF, 1.0, 1.0, 0.9), scalers=(ScalerLog(5, 3, 5, 1024.0),)),
        "pass",
    ),
    "a negative loss that falls": ("loss-trend", losses(*[-float(i) for i in range(40)]), "pass"),
    "a loss that grows": ("loss-trend", losses(*[1.1**i for i in range(40)]), "warn"),
    "two optimizers": (
        "loss-trend",
        replace(losses(*[1.1**i for i in range(40)]), optimizers=(OPTIMIZER, OPTIMIZER)),
        "pass",
    ),
    "clipped now and then": ("gradient-clipping", LoopRecord(clips=(CLIP,)), "pass"),
    "clipped to nothing": (
        "gradient-clipping",
        LoopRecord(clips=(replace(CLIP, ratios=(1e-3,) * 20),)),
        "warn",
    ),
    "nothing to clip, for it was wiped": (
        "gradient-clipping",
        replace(
            windows(5, wiped=True, gradients="none"), clips=(replace(CLIP, before_backward=20, ratios=()),)
        ),
        "pass",
    ),
    "few graphs": ("memory-growth", LoopRecord(graphs=(GraphLog(None, 100, 15, 15, False),)), "pass"),
    "many graphs": ("memory-growth", LoopRecord(graphs=(GraphLog(None, 100, 64, 64, False),)), "warn"),
    "graphs of an episode": (
        "memory-growth",
        LoopRecord(graphs=(GraphLog(None, 100, 40, 20, False),)),
        "pass",
    ),
    "all skipped": ("loss-scaler", LoopRecord(scalers=(ScalerLog(20, 0, 20, 0.1),)), "fail"),
    "some skipped": ("loss-scaler", LoopRecord(scalers=(ScalerLog(20, 15, 20, 0.1),)), "pass"),
    "rising validation, falling training": (
        "overfitting",
        replace(
            losses(*[1 / (1 + i) for i in range(100)]),
            evaluations=tuple(Evaluation(20 * i + 20, 1 + 0.2 * i, 3) for i in range(5)),
        ),
        "warn",
    ),
    "both rise": (
        "overfitting",
        replace(
            losses(*[1.0 + i for i in range(100)]),
            evaluations=tuple(Evaluation(20 * i + 20, 1 + 0.2 * i, 3) for i in range(5)),
        ),
        "pass",
    ),
    "waiting little": ("step-time", LoopRecord(times=TimeLog(100, 0.1, 0.9)), "pass"),
    "waiting long": ("step-time", LoopRecord(times=TimeLog(100, 10.0, 0.9)), "warn"),
    "training and accuracy on it": (
        "eval-data",
        LoopRecord(
            passes=(PASS, replace(PASS, backwards=0, steps=0, model_calls=((("eval", False), 10),))),
            data=DATA,
        ),
        "pass",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_verdict(case: str, registry: Registry) -> None:
    check, record, expected = CASES[case]
    assert judged(check, record, registry).status == expected


def judged(check: str, record: LoopRecord, registry: Registry) -> Result:
    return Run(record, select=check, config={}, registry=registry).execute()[check]


def test_the_cause_of_a_nan_is_named(registry: Registry) -> None:
    record = losses(1.0, NAN, blame=Blame("module", "encoder.layers.3"))
    finding = judged("loss-trend", record, registry).findings[0]
    assert finding.where == "encoder.layers.3"
    assert finding.location == "train.py:8"
    assert "backward 2 (after 1 steps)" in finding.message
