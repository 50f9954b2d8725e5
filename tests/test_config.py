"""Configuration: strict keys, reasons, suppressions, settings, baselines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import pytest
from pydantic import Field

from debugkit import Finding, Report, Target, UsageError, fail, note, warn
from debugkit.check import Check
from debugkit.config import Baseline, Config, Suppression
from debugkit.registry import Registry
from debugkit.report import Result
from debugkit.runner import Run
from debugkit.testing import mlp


class Layers:
    """Evidence whose id is also a check's id."""

    @staticmethod
    def collect(target: Target, *, depth: Annotated[int, Field(ge=0)] = 3) -> int:
        return depth


def layers(
    depth: Layers, *, max_ratio: Annotated[float, Field(gt=1)] = 10.0, strict: bool = False
) -> Iterator[Finding]:
    """Layers."""
    yield warn(f"{depth} layers, ratio {max_ratio:g}", where="bert.pooler", depth=depth)
    yield fail("1 layer is gone", where="bert.pooler.dense", location="train.py:41")
    yield fail("row 17 is odd", where="train[17]")
    yield note("looked")


def quiet(target: Target) -> Iterator[Finding]:
    """Says nothing."""
    yield note("looked")


CHECKS = Registry([Check(layers, "structure", "test"), Check(quiet, "structure", "test")])


def run(settings: tuple[str, ...] = (), baseline: Baseline | None = None, **config: object) -> Report:
    return Run(Target(mlp()), config=config, settings=settings, baseline=baseline, registry=CHECKS).execute()


def messages(report: Report) -> list[str]:
    return [finding.message for finding in report["layers"].active]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"selekt": ["all"]}, r"has no key `selekt` \(did you mean `select`\?\); valid keys: select, ignore"),
        ({"fail-on": "warning"}, "`fail-on` = 'warning': input should be 'warn', 'fail' or 'never'"),
        ({"ignore": ["layers"]}, r'valid dictionary; write `check = "reason"`'),
        ({"ignore": {"layers": ""}}, r'`ignore.layers` = \'\'.*; write `check = "reason"`'),
        ({"suppress": [{"check": "layers"}]}, "`suppress.0` needs a `reason`"),
        (
            {"suppress": [{"check": "layers", "wher": "x", "reason": "why not"}]},
            r"no key `suppress.0.wher` \(did you mean `where`\?\); valid keys: check, where, reason",
        ),
        ({"budget": 0}, "greater than 0"),
        ({"max-cost": "cheap"}, "'static', 'data'"),
    ],
)
def test_mistakes_name_the_nearest_valid_key(table: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Config.read(table)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"checks": {"layer": {}}}, r"no check is called `layer` \(did you mean `layers`\?\)"),
        (
            {"checks": {"layers": {"max-ration": 3}}},
            r"no option `max-ration` \(did you mean `max-ratio`\?\); its options: `max-ratio`, `strict`",
        ),
        (
            {"checks": {"layers": {"max-ratio": 0.5}}},
            "option of `layers` `max-ratio` = 0.5: .*greater than 1",
        ),
        ({"checks": {"layers": {"depth": 1}}}, r"no option `depth` \(did you mean `layers.depth`\?\)"),
        ({"evidence": {"layer": {}}}, r"no evidence is called `layer` \(did you mean `layers`\?\)"),
        ({"ignore": {"layer": "why not"}}, r"no check or family is called `layer`"),
    ],
)
def test_mistakes_in_options_name_the_nearest_valid_one(table: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        run(**table)


def test_options_from_tables_and_settings() -> None:
    report = run(checks={"layers": {"max_ratio": 2}}, evidence={"layers": {"depth": 7}})
    assert messages(report)[0] == "7 layers, ratio 2"
    report = run(("layers.max-ratio=4", "layers.depth=5"), checks={"layers": {"max-ratio": 2}})
    assert messages(report)[0] == "5 layers, ratio 4"


@pytest.mark.parametrize(
    "setting", ["layers", "layers.max-ratio", ".max-ratio=3", "layers.=3", "max-ratio=3"]
)
def test_a_malformed_setting_is_refused(setting: str) -> None:
    with pytest.raises(UsageError, match=r"must read `ID\.option=value`"):
        run((setting,))


def test_settings_name_what_exists() -> None:
    with pytest.raises(UsageError, match=r"no check is called `layer` \(did you mean `layers`\?\)"):
        run(("layer.max-ratio=3",))
    with pytest.raises(UsageError, match="valid boolean"):
        run(("layers.strict=perhaps",))
    run(("layers.strict=True",))
    run(("layers.strict=true",))


def test_ignored_checks_are_reported_with_their_reason() -> None:
    report = run(ignore={"layers": "shallow on purpose"})
    assert (report["layers"].status, report["layers"].reason) == ("skip", "ignored: shallow on purpose")
    assert report["quiet"].status == "pass"


def test_ignored_checks_outside_the_selection_are_not_reported() -> None:
    assert [result.check for result in run(select=["quiet"], ignore={"layers": "shallow"}).results] == [
        "quiet"
    ]


@pytest.mark.parametrize(
    ("where", "covered"),
    [
        ("bert.pooler.*", {"bert.pooler", "bert.pooler.dense"}),
        ("bert.pooler", {"bert.pooler"}),
        ("bert.*", {"bert.pooler", "bert.pooler.dense"}),
        ("train.py:*", {"bert.pooler.dense"}),
        ("train[17]", {"train[17]"}),
        ("train[*]", {"train[17]"}),
        ("*", {"bert.pooler", "bert.pooler.dense", "train[17]"}),
        ("bert.poo", set()),
    ],
)
def test_suppressions_cover_places(where: str, covered: set[str]) -> None:
    report = run(suppress=[{"check": "layers", "where": where, "reason": "known"}])
    suppressed = [finding for finding in report["layers"].findings if finding.suppressed]
    assert {finding.where for finding in suppressed} == covered
    assert {finding.suppressed for finding in suppressed} <= {"known"}
    assert report.suppressed == len(covered)
    assert report["layers"].status == ("pass" if len(covered) == 3 else "fail")
    assert bool(report.notices) == (not covered)


def test_a_suppression_that_matches_nothing_is_reported() -> None:
    rules = [
        {"check": "layers", "where": "bert.pooler.*", "reason": "unused"},
        {"check": "layers", "where": "bert.*", "reason": "also true"},
        {"check": "layers", "where": "gpt.*", "reason": "from an old model"},
        {"check": "layer", "reason": "misspelt"},
    ]
    assert run(suppress=rules).notices == (
        "the suppression of `layers` at `gpt.*` matches nothing: remove it",
        "a suppression names the check `layer`, which does not exist (did you mean `layers`?)",
    )


def test_suppressions_leave_notes_alone() -> None:
    assert not Suppression(check="layers", reason="known").covers("layers", note("looked"))


def test_the_nearest_pyproject_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pyproject.toml").write_text('[tool.debugkit]\nfail-on = "warn"\nload = ["own", "../other"]')
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    (tmp_path / "a" / "pyproject.toml").write_text("[project]\nname = 'x'")
    monkeypatch.chdir(below)
    config = Config.read()
    assert config.fail_on == "warn"
    assert config.load == [tmp_path / "own", tmp_path / ".." / "other"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[tool", "no valid TOML"),
        ("[project]\nname = 'x'", r"has no `\[tool.debugkit\]` table"),
        ("[tool]\ndebugkit = 3", "must be a table"),
        ("[tool.debugkit]\nseed = -1", r"pyproject.toml: \[tool.debugkit\] `seed` = -1"),
    ],
)
def test_a_file_that_can_not_be_used(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "pyproject.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        Config.read(path)
    with pytest.raises(UsageError, match="can't be read"):
        Config.read(tmp_path / "absent.toml")


def test_a_file_of_its_own_needs_no_table(tmp_path: Path) -> None:
    (tmp_path / "debugkit.toml").write_text('max-cost = "data"')
    assert Config.read(tmp_path / "debugkit.toml").max_cost == "data"


def test_a_baseline_lets_known_findings_pass(tmp_path: Path) -> None:
    path = tmp_path / "old.json"
    path.write_text(run().to_json())
    report = run(("layers.depth=4",), baseline=Baseline.read(path))
    assert report.status == "pass"
    assert report.suppressed == 3
    known = Report(
        debugkit_version="0",
        target="t",
        results=(
            Result(
                check="layers",
                family="structure",
                status="fail",
                findings=(fail("1 layer is gone", where="bert.pooler.dense", location="train.py:7"),),
            ),
        ),
    )
    assert messages(run(baseline=Baseline(known))) == ["3 layers, ratio 10", "row 17 is odd"]


def test_a_baseline_that_can_not_be_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="can't be read"):
        Baseline.read(tmp_path / "absent.json")
    (tmp_path / "odd.json").write_text("{}")
    with pytest.raises(UsageError, match="not a debugkit report"):
        Baseline.read(tmp_path / "odd.json")
