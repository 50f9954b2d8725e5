"""The formats that programs read."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

import debugkit
from debugkit.render import FORMATS, render
from debugkit.report import Report, Result


def test_json_comes_back_the_same(report: Report) -> None:
    again = Report.from_json(render(report, "json"))
    assert render(again, "json") == render(report, "json")
    assert '"row_sum": "NaN"' in render(again, "json")


def test_json_follows_the_shipped_schema(report: Report) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.validate(json.loads(render(report, "json")), Report.schema_of())


def test_the_shipped_schema_is_the_models() -> None:
    shipped = Path(debugkit.__file__).with_name("report.schema.json")
    assert json.loads(shipped.read_text(encoding="utf-8")) == Report.schema_of()


def test_jsonl_has_a_line_per_result(report: Report) -> None:
    lines = render(report, "jsonl").splitlines()
    assert [json.loads(line)["check"] for line in lines] == [result.check for result in report.results]
    assert Result.model_validate_json(lines[0]) == report.results[0]


def test_concise_has_a_line_per_finding(report: Report) -> None:
    lines = render(report, "concise").splitlines()
    assert "train.py:41: fail logits-vs-probs: `cross_entropy` expects" in "\n".join(lines)
    assert any(line.startswith("run [unused1] `train[3]`: fail text-quality: ") for line in lines)
    assert lines[-1] == "run [unused1]: error overfit: the check crashed: ValueError: no"
    assert len(lines) == 2 + 1 + 9 + 1
    assert not any("\x1b" in line for line in lines)
    assert not any("frozen" in line for line in lines)


def test_junit_is_xml_with_a_case_per_check(report: Report) -> None:
    suite = ET.fromstring(render(report, "junit").encode())[0]
    assert suite.attrib["name"] == "run [unused1]"
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors"), suite.get("skipped")) == (
        "8",
        "2",
        "1",
        "2",
    )
    cases = {case.attrib["name"]: case for case in suite.iter("testcase")}
    assert cases["logits-vs-probs"].get("classname") == "loss"
    failure = cases["text-quality"].find("failure")
    assert failure is not None
    assert failure.attrib["message"].startswith("[31mred[0m [unused1] [/INST]")
    assert "hint: strip `[/INST]`" in (failure.text or "")
    assert cases["padding"].find("skipped") is not None
    assert cases["overfit"].find("error") is not None


def test_junit_lets_a_warning_pass_and_marks_it(report: Report) -> None:
    suite = ET.fromstring(render(report, "junit").encode())[0]
    case = next(case for case in suite.iter("testcase") if case.get("name") == "label-balance")
    assert case.find("failure") is None
    assert "warn: class 0 is rare" in (case.findtext("system-out") or "")
    found = case.find("properties/property")
    assert found is not None
    assert found.attrib == {"name": "debugkit.status", "value": "warn"}


@pytest.mark.parametrize("form", FORMATS)
def test_an_empty_report_renders(form: str, empty: Report) -> None:
    assert render(empty, form).endswith("\n") or form in ("concise", "jsonl")
