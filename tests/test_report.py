"""The report: statuses, exit codes, and a JSON round trip that loses nothing."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from debugkit import Finding, Report, Result, UsageError, fail, note, warn
from debugkit.report import FailOn, Status


def report(*statuses: Status, **values: object) -> Report:
    results = tuple(
        Result(check=f"check-{index}", family="some", status=status) for index, status in enumerate(statuses)
    )
    return Report(debugkit_version="0", target="t", results=results, **values)  # type: ignore[arg-type]


def with_finding(finding: Finding) -> Report:
    result = Result(check="one", family="some", status="pass", findings=(finding,))
    return Report(debugkit_version="0", target="t", results=(result,))


@pytest.mark.parametrize(
    ("statuses", "fail_on", "code"),
    [
        (["pass", "skip"], "fail", 0),
        (["pass", "warn"], "fail", 0),
        (["pass", "warn"], "warn", 1),
        (["pass", "fail"], "fail", 1),
        (["fail", "warn"], "never", 0),
        (["fail", "error"], "never", 2),
        (["skip", "skip"], "fail", 3),
        ([], "fail", 3),
    ],
)
def test_exit_codes(statuses: list[Status], fail_on: FailOn, code: int) -> None:
    assert report(*statuses).exit_code(fail_on) == code


def test_an_interrupted_report_says_so() -> None:
    assert report("fail", interrupted=True).exit_code() == 130


def test_status_counts_and_lookup() -> None:
    one = report("pass", "fail", "warn", "skip")
    assert one.status == "fail"
    assert report().status == "skip"
    assert one.counts["pass"] == 1
    assert one["check-1"].status == "fail"
    with pytest.raises(KeyError):
        one["absent"]


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        (math.nan, math.nan),
        (math.inf, math.inf),
        (-math.inf, -math.inf),
        ([1.0, math.inf], [1.0, math.inf]),
        (True, True),
        (3, 3),
        (10**30, 10**30),
        ("word", "word"),
        (None, None),
        (np.float32(0.5), 0.5),
        (np.array([1, 2]), [1, 2]),
        (torch.tensor(2.0), 2.0),
        (torch.tensor(math.inf, dtype=torch.bfloat16), math.inf),
        (torch.tensor([1, 2]), [1, 2]),
        ((1, 2.5), [1, 2.5]),
    ],
)
def test_measured_numbers_survive_json(value: object, stored: object) -> None:
    finding = note("seen", measure=value)
    text = with_finding(finding).to_json()
    again = Report.from_json(text)["one"].findings[0].measured["measure"]
    assert repr(finding.measured["measure"]) == repr(again) == repr(stored)

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("text", ["\ud800 alone", "nul \x00", "\x1b[31m", "\u202e", "emoji 🤗", "]]>"])
def test_any_text_survives_json(text: str) -> None:
    one = with_finding(fail(text, where=text, hint=text, location=text, sample=text))
    assert Report.from_json(one.to_json()) == one
    assert Report.from_json(one.to_json().encode()) == one


def test_findings_are_strict_and_frozen() -> None:
    finding = warn("odd", level=3)
    assert finding.measured == {"level": 3}
    with pytest.raises(ValidationError):
        finding.message = "even"  # type: ignore[misc]
    with pytest.raises(ValidationError):
        note("nested", deep={"a": 1})


def test_a_text_that_is_no_report() -> None:
    for text in ("", "[]", "{}", '{"schema_version": "1.0"}'):
        with pytest.raises(UsageError, match="not a debugkit report"):
            Report.from_json(text)
    newer = json.loads(report("pass").to_json()) | {"schema_version": "2.0", "extra": 1}
    with pytest.raises(UsageError, match=r"schema version 2\.0; this debugkit reads 1\.0"):
        Report.from_json(json.dumps(newer))
