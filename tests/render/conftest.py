"""A report with everything in it that a renderer has to survive."""

from __future__ import annotations

import pytest

from debugkit.finding import Finding, fail, note, warn
from debugkit.report import Report, Result, Status

NASTY = "\x1b[31mred\x1b[0m [unused1] [/INST] [bold]x[/] <b>&amp;\x00\u202e and\nnewline 日本語"


def result(
    check: str, status: Status, *findings: Finding, family: str = "data", reason: str | None = None
) -> Result:
    return Result(check=check, family=family, status=status, findings=findings, reason=reason, seconds=0.5)


@pytest.fixture
def report() -> Report:
    known = warn("frozen").model_copy(update={"suppressed": "linear probing on purpose"})
    return Report(
        debugkit_version="0.1.0",
        target="run [unused1]",
        seconds=2.5,
        notices=("`train_loader` can't be rewound",),
        results=(
            result("finite-inputs", "pass", note("no NaN in 2,048 samples"), note("a second note")),
            result(
                "text-quality",
                "fail",
                warn("the minor one"),
                fail(NASTY, where="train[3]", hint="strip `[/INST]`"),
            ),
            result(
                "logits-vs-probs",
                "fail",
                fail(
                    "`cross_entropy` expects logits and was given softmax outputs, every row of which sums to 1",
                    where="head.1",
                    location="train.py:41",
                    hint="pass the raw logits",
                    row_sum=float("nan"),
                ),
                family="loss",
            ),
            result("label-balance", "warn", *(warn(f"class {i} is rare") for i in range(9))),
            result("frozen-embeddings", "pass", known, family="weights"),
            result("padding", "skip", family="tokenizer", reason="the target has no tokenizer"),
            result("truncation", "skip", family="tokenizer", reason="the target has no tokenizer"),
            result("overfit", "error", family="training", reason="the check crashed: ValueError: no"),
        ),
    )


@pytest.fixture
def empty() -> Report:
    return Report(debugkit_version="0.1.0", target="nothing")
