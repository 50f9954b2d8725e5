"""The pytest plugin, driven by pytest itself."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

import debugkit.runner  # noqa: F401 - keeps torch loaded across the runs that pytester starts in this process
from debugkit.registry import Registry

TARGETS = """
import torch
from debugkit import Target
from debugkit.testing import blobs, mlp

def target():
    return Target(mlp(), blobs(), torch.nn.CrossEntropyLoss())

def broken():
    model = torch.nn.Sequential(mlp(), torch.nn.Softmax(dim=-1))
    return Target(model, blobs(), torch.nn.CrossEntropyLoss())
"""

CHECKS = '''
from collections.abc import Iterator
from dataclasses import dataclass

from debugkit import Finding, Target, Unavailable, check, fail, note, warn


@dataclass(frozen=True)
class Shared:
    @staticmethod
    def collect(target: Target) -> "Shared":
        with open("collected.txt", "a") as file:
            file.write("x")
        return Shared()


@check
def plain_pass(shared: Shared) -> Iterator[Finding]:
    """Passes."""
    yield note("1 model seen")


@check
def plain_fail(shared: Shared) -> Iterator[Finding]:
    """Fails."""
    yield fail("7 of 9 layers are \\x1b[31mred", where="layer.7", location="train.py:3", hint="paint them")


@check
def plain_warn(shared: Shared) -> Iterator[Finding]:
    """Warns."""
    yield warn("3 layers are pale", hint="more light")


@check
def plain_skip(shared: Shared) -> Iterator[Finding]:
    """Skips."""
    raise Unavailable("the target has no tokenizer; pass Target(tokenizer=...)")
    yield


@check
def plain_error(shared: Shared) -> Iterator[Finding]:
    """Crashes."""
    raise ValueError("out of paint")
    yield


@check
def plain_noise(target: Target) -> Iterator[Finding]:
    """Sets off a Python warning."""
    import warnings

    warnings.warn("deprecated", DeprecationWarning)
    yield note("heard")
'''

IDS = ["plain-error", "plain-fail", "plain-noise", "plain-pass", "plain-skip", "plain-warn"]


@pytest.fixture
def project(pytester: pytest.Pytester, registry: Registry) -> pytest.Pytester:
    """A folder with targets, a local check for each verdict, and a configuration that selects them."""
    pytester.makepyfile(training=TARGETS)
    pytester.mkdir("plain_checks").joinpath("verdicts.py").write_text(CHECKS)
    pytester.makepyprojecttoml(
        '[tool.pytest.ini_options]\nfilterwarnings = ["default"]\n'
        '[tool.debugkit]\nselect = ["plain-*"]\nload = ["plain_checks"]'
    )
    return pytester


def collected(result: pytest.RunResult) -> list[str]:
    return [line for line in result.outlines if "::" in line]


def test_collects_one_sorted_test_per_check(project: pytest.Pytester) -> None:
    result = project.runpytest("--debugkit", "training.py", "--collect-only", "-q")
    assert collected(result) == [f"debugkit::training.py::{name}" for name in IDS]
    assert result.ret == 0


def test_verdicts_become_outcomes_in_the_reports_words(project: pytest.Pytester) -> None:
    result = project.runpytest("--debugkit", "training.py", "-rs")
    result.assert_outcomes(passed=3, failed=2, skipped=1, warnings=1)
    result.stdout.fnmatch_lines(
        [
            "plain-error could not be completed: the check crashed: ValueError: out of paint",
            "plain-fail failed: 7 of 9 layers are \\x1b[[]31mred",
            "    at train.py:3, layer.7",
            "    hint: paint them",
            "*DebugkitWarning: plain-warn warned: 3 layers are pale",
            "*    hint: more light",
            "SKIPPED [[]1[]] training.py: *the target has no tokenizer; pass Target(tokenizer=...)",
        ]
    )
    result.stdout.no_fnmatch_line("*Traceback*")
    result.stdout.no_fnmatch_line("*pytest_plugin.py*")
    result.stdout.no_fnmatch_line("*DeprecationWarning*")


def test_verbose_shows_where_a_check_crashed(project: pytest.Pytester) -> None:
    result = project.runpytest("-v", "--debugkit", "training.py", "-k", "plain-error")
    result.stdout.fnmatch_lines(["*could not be completed*", "*verdicts.py*in plain_error*", "ValueError: *"])


def test_evidence_is_measured_once_per_target(project: pytest.Pytester) -> None:
    project.runpytest("--debugkit", "training.py", "--debugkit", "training.py:broken")
    assert Path("collected.txt").read_text() == "xx"


def test_ini_targets_join_the_whole_suite_only(project: pytest.Pytester) -> None:
    pyproject = project.path / "pyproject.toml"
    targets = '[tool.pytest.ini_options]\ndebugkit_targets = ["training.py", "training.py:broken"]'
    pyproject.write_text(pyproject.read_text().replace("[tool.pytest.ini_options]", targets))
    project.mkdir("tests")
    project.path.joinpath("tests", "test_own.py").write_text("def test_own(): pass")
    whole = project.runpytest("--collect-only", "-q")
    assert len(collected(whole)) == 1 + 2 * len(IDS)
    assert len(collected(project.runpytest("tests", "--collect-only", "-q"))) == 1 + 2 * len(IDS)
    assert len(collected(project.runpytest("tests/test_own.py", "--collect-only", "-q"))) == 1


def test_node_ids_do_not_depend_on_the_working_directory(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.mkdir("below")
    monkeypatch.chdir(project.path / "below")
    result = project.runpytest("--debugkit", "../training.py", "--collect-only", "-q", "-k", "plain-pass")
    assert [line.split("debugkit::")[1] for line in collected(result)] == ["training.py::plain-pass"]


@pytest.mark.parametrize(
    "options",
    [["-k", "plain-pass"], ["-k", "plain-pass or fail", "--deselect", "debugkit::training.py::plain-fail"]],
)
def test_deselection(project: pytest.Pytester, options: list[str]) -> None:
    project.runpytest("--debugkit", "training.py", *options).assert_outcomes(passed=1, deselected=5)


def test_marker_separates_checks_from_tests(project: pytest.Pytester) -> None:
    project.makepyfile(test_own="def test_own(): pass")
    project.runpytest("--debugkit", "training.py", "-m", "not debugkit").assert_outcomes(
        passed=1, deselected=6
    )


def test_a_node_id_can_be_given_back(project: pytest.Pytester) -> None:
    project.makepyfile(test_own="def test_own(): pass")
    result = project.runpytest(
        "debugkit::training.py::plain-pass", "debugkit::training.py:broken::plain-fail"
    )
    result.assert_outcomes(passed=1, failed=1)
    result = project.runpytest("debugkit::training.py::plain-past")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        ["ERROR: debugkit: no check is called `plain-past` (did you mean `plain-pass`[?])"]
    )


def test_last_failed(project: pytest.Pytester) -> None:
    project.runpytest("--debugkit", "training.py")
    project.runpytest("--debugkit", "training.py", "--lf").assert_outcomes(failed=2, deselected=4)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("absent.py", "there is no file `absent.py`"),
        ("training.py:tarjet", "`training.py` has no `tarjet`*"),
        ("training.py:torch", "*not a `debugkit.Target`*"),
        ("no.such.module", "no module is called `no`*"),
    ],
)
def test_a_wrong_spec_is_one_usage_error(project: pytest.Pytester, spec: str, message: str) -> None:
    result = project.runpytest("--debugkit", spec)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: debugkit: {message}"])
    assert "Traceback" not in result.stdout.str() + result.stderr.str()


def test_a_wrong_configuration_is_one_usage_error(project: pytest.Pytester) -> None:
    project.makepyprojecttoml('[tool.debugkit]\nselekt = ["all"]')
    result = project.runpytest("--debugkit", "training.py")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*has no key `selekt` (did you mean `select`[?])*"])


def test_ignored_checks_are_skips_with_their_reason(project: pytest.Pytester) -> None:
    pyproject = project.path / "pyproject.toml"
    pyproject.write_text(pyproject.read_text() + '\n[tool.debugkit.ignore]\nplain-fail = "not today"')
    result = project.runpytest("--debugkit", "training.py", "-k", "plain-fail", "-rs")
    result.assert_outcomes(skipped=1, deselected=5)
    result.stdout.fnmatch_lines(["*ignored: not today"])


def test_a_warning_can_be_made_an_error(project: pytest.Pytester) -> None:
    result = project.runpytest("--debugkit", "training.py", "-W", "error", "-k", "plain-warn or plain-noise")
    result.assert_outcomes(failed=1, passed=1, deselected=4)
    result.stdout.fnmatch_lines(["plain-warn warned: 3 layers are pale"])


def test_verdicts_are_in_the_junit_file(project: pytest.Pytester) -> None:
    project.runpytest("--debugkit", "training.py", "--junitxml=report.xml")
    properties = junit_properties(Path("report.xml"))
    assert properties["debugkit.plain-warn"] == "warn"
    assert json.loads(properties["debugkit.plain-fail.result"])["findings"][0]["where"] == "layer.7"


def test_distributed(project: pytest.Pytester) -> None:
    project.makepyfile(test_own="def test_own(): pass")
    options = ["--debugkit", "training.py", "--junitxml=report.xml", "-n", "2", "--dist", "loadscope"]
    result = project.runpytest_subprocess(*options)
    result.assert_outcomes(passed=4, failed=2, skipped=1, warnings=1)
    properties = junit_properties(Path("report.xml"))
    assert {name for name in properties if not name.endswith(".result")} == {
        f"debugkit.{name}" for name in IDS
    }
    assert Path("collected.txt").read_text() == "x"


def test_distributed_with_a_wrong_spec(project: pytest.Pytester) -> None:
    result = project.runpytest_subprocess("--debugkit", "absent.py", "-n", "2")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: debugkit: there is no file `absent.py`"])


def test_the_plugin_can_be_left_out(project: pytest.Pytester) -> None:
    project.makepyfile(test_own="def test_own(): pass")
    project.runpytest("-p", "no:debugkit").assert_outcomes(passed=1)


FIXTURE = """
import pytest
from training import broken, target

@pytest.fixture{scope}
def debugkit_target():
    return target()
"""


def write_test(project: pytest.Pytester, body: str, scope: str = "") -> None:
    project.makepyfile(test_own=FIXTURE.format(scope=scope) + body)
    project.syspathinsert()


def test_fixture_returns_the_report(project: pytest.Pytester) -> None:
    write_test(
        project,
        """
def test_checklist(debugkit_check):
    report = debugkit_check(select=["plain-pass", "plain-noise"])
    assert [result.check for result in report.results] == ["plain-noise", "plain-pass"]
    assert report.status == "pass"
""",
    )
    project.runpytest("-W", "error").assert_outcomes(passed=1)


def test_fixture_fails_with_a_summary(project: pytest.Pytester) -> None:
    write_test(project, "\ndef test_checklist(debugkit_check): debugkit_check(ignore='plain-error')")
    result = project.runpytest("--junitxml=report.xml")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["plain-fail failed: 7 of 9 layers*", "plain-warn warned: 3 layers are pale"])
    result.stdout.no_fnmatch_line("*pytest_plugin.py*")
    assert junit_properties(Path("report.xml"))["debugkit.plain-pass"] == "pass"


def test_fixture_warns_at_the_call(project: pytest.Pytester) -> None:
    write_test(project, "\ndef test_checklist(debugkit_check):\n    debugkit_check(select='plain-warn')")
    result = project.runpytest()
    result.assert_outcomes(passed=1, warnings=1)
    result.stdout.fnmatch_lines(["*test_own.py:*DebugkitWarning: plain-warn warned: 3 layers are pale"])


def test_fixture_skips_when_nothing_was_checked(project: pytest.Pytester) -> None:
    write_test(project, "\ndef test_checklist(debugkit_check): debugkit_check('plain-skip')")
    result = project.runpytest("-rs")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["*nothing was checked: the target has no tokenizer*"])


def test_fixture_shares_evidence_between_tests(project: pytest.Pytester) -> None:
    write_test(
        project,
        """
def test_one(debugkit_check): debugkit_check("plain-pass")
def test_two(debugkit_check): debugkit_check("plain-pass,plain-warn")
""",
        scope="(scope='session')",
    )
    project.runpytest().assert_outcomes(passed=2, warnings=1)
    assert Path("collected.txt").read_text() == "x"


def test_fixture_names_a_wrong_selection(project: pytest.Pytester) -> None:
    write_test(project, "\ndef test_checklist(debugkit_check): debugkit_check('plain-past')")
    result = project.runpytest()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["debugkit: no check or family is called `plain-past`*"])


def test_fixture_without_a_target_says_what_to_define(project: pytest.Pytester) -> None:
    project.makepyfile(test_own="def test_checklist(debugkit_check): debugkit_check()")
    result = project.runpytest()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["define a fixture `debugkit_target` that returns a `debugkit.Target`"])


def test_the_built_in_checks_find_a_softmax_before_the_loss(project: pytest.Pytester) -> None:
    project.makepyprojecttoml('[tool.debugkit]\nselect = ["logits-vs-probs"]')
    result = project.runpytest("--debugkit", "training.py:broken", "--debugkit", "training.py")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["logits-vs-probs failed: `cross_entropy` expects logits*softmax*"])


def junit_properties(path: Path) -> dict[str, str]:
    return {element.attrib["name"]: element.attrib["value"] for element in ET.parse(path).iter("property")}
