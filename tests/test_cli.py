from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from click.testing import CliRunner, Result

from debugkit import cli
from debugkit.commands import options
from debugkit.evidence import COSTS
from debugkit.report import Report

CHECKS = """\
from debugkit import Target, check, fail, note, warn

@check
def names_the_model(target: Target, *, level: int = 0):
    \"\"\"Says the model's name.\"\"\"
    print("printed by a check")
    yield note(type(target.model).__name__)
    if level:
        yield warn("the level is set", where="level")

def good():
    import torch
    return Target(torch.nn.Linear(1, 1))

def bad_but_is_not():
    return good()

@check
def fails_on_conv(target: Target):
    \"\"\"Fails on a convolution.\"\"\"
    if "Conv" in type(target.model).__name__:
        yield fail("a convolution", hint="use something else")

@check
def crashes_on_identity(target: Target):
    \"\"\"Crashes on an identity.\"\"\"
    if "Identity" in type(target.model).__name__:
        1 / 0
    yield note("no crash")
"""

TRAIN = """\
import os
print("printed on import")
os.write(1, b"written to the descriptor")
import torch
from debugkit import Target
target = Target(torch.nn.Linear(2, 2), name="my run")
def conv(): return Target(torch.nn.Conv1d(1, 1, 1))
def identity(): return Target(torch.nn.Identity())
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with three local checks, a program and a configuration."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    family = tmp_path / "cli_test_checks" / "mine"
    family.mkdir(parents=True)
    (family / "__init__.py").touch()
    (family / "three.py").write_text(CHECKS)
    (tmp_path / "train.py").write_text(TRAIN)
    (tmp_path / "pyproject.toml").write_text(
        '[tool.debugkit]\nselect = ["mine"]\nload = ["cli_test_checks"]\n'
    )
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")) or name.startswith(
            "cli_test_checks"
        ):
            del sys.modules[name]
    importlib.invalidate_caches()


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli.commands, arguments, prog_name="debugkit")


def program(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "debugkit", *arguments], capture_output=True, text=True, timeout=120, **options
    )


def refused(result: Result) -> str:
    assert result.exit_code == 2
    assert result.stdout == ""
    last = result.stderr.splitlines()[-1]
    assert last.startswith("debugkit: ")
    assert "Traceback" not in result.stderr
    return last


def test_help_is_fast_and_does_not_import_torch() -> None:
    script = (
        "import sys, debugkit.cli as cli\n"
        "try: cli.commands(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'rich', 'pydantic', 'numpy', 'transformers'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    durations = []
    for _ in range(3):
        start = time.perf_counter()
        assert "check" in program("--help").stdout
        durations.append(time.perf_counter() - start)
    assert min(durations) < 1.0


def test_costs_and_formats_are_the_ones_that_exist() -> None:
    assert options.COSTS == COSTS


def test_json_on_stdout_is_nothing_but_json(project: Path) -> None:
    done = program("check", "train.py", "--format", "json")
    assert done.returncode == 0, done.stderr
    report = Report.from_json(done.stdout)
    assert report.target == "my run"
    assert [result.status for result in report.results] == ["pass", "pass", "pass"]
    for printed in ("printed on import", "written to the descriptor", "printed by a check"):
        assert printed in done.stderr


def test_what_is_printed_at_exit_is_not_on_stdout(project: Path) -> None:
    (project / "train.py").write_text(TRAIN + "import atexit\natexit.register(print, 'printed at exit')\n")
    done = program("check", "train.py", "--format", "concise")
    assert done.stdout == ""
    assert "printed at exit" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["train.py"], 0),
        (["train.py:conv"], 1),
        (["train.py:conv", "--fail-on", "never"], 0),
        (["train.py:conv", "--ignore", "fails-on-conv"], 0),
        (["train.py:identity"], 2),
        (["train.py", "--set", "names-the-model.level=1"], 0),
        (["train.py", "--set", "names-the-model.level=1", "--fail-on", "warn"], 1),
        (["train.py", "--select", "names-*,fails-on-conv", "--seed", "3"], 0),
        (["train.py", "--select", "mine", "--ignore", "mine"], 3),
    ],
)
def test_exit_codes(project: Path, arguments: list[str], code: int) -> None:
    result = run("check", *arguments)
    assert result.exit_code == code, result.output
    assert f"exit {code}: " in result.stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nothing.py"], "there is no file `nothing.py`"),
        (["train.py:cnv"], "did you mean `conv`?"),
        (["train.py", "--select", "mien"], "no check or family is called `mien` (did you mean `mine`?)"),
        (["train.py", "--set", "names-the-model.levle=1"], "did you mean `level`?"),
        (["train.py", "--set", "names-the-model.level=x"], "`level`"),
        (["train.py", "--set", "nonsense"], "must read `ID.option=value`"),
        (["train.py", "--config", "none.toml"], "`none.toml` can't be read"),
        (["train.py", "--baseline", "none.json"], "the baseline `none.json` can't be read"),
        (["train.py", "--budget", "0"], "--budget"),
        (["train.py", "--selct", "a"], "no such option"),
        (["train.py", "--format", "yaml"], "'yaml' is not one of 'text', 'concise'"),
        (["train.py", "--format", "jsn"], "(did you mean `json`?)"),
        (["train.py", "--baseline", "pyproject.toml"], "the baseline `pyproject.toml` can't be used: not a"),
        ([], "missing argument 'SPEC'"),
        (["train.py", "--output", "r.json"], "`--output r.json` has no `--format`"),
        (["train.py", "--format", "json", "--format", "junit"], "`json` and `junit` can't share stdout"),
        (["train.py", "--format", "json", "--output", "no/r.json"], "there is no folder `no`"),
        (["train.py", "--format", "json", "--output", "."], "is a folder"),
        (
            ["train.py", "--format", "json", "--output", "r", "--format", "junit", "--output", "r"],
            "two formats go to the same",
        ),
    ],
)
def test_mistakes_are_one_sentence(project: Path, arguments: list[str], sentence: str) -> None:
    assert sentence in refused(run("check", *arguments))


def test_an_unwritable_output_is_refused_before_the_run(project: Path) -> None:
    result = run("check", "train.py", "--format", "json", "--output", "no/r.json")
    assert "printed on import" not in result.stderr


def test_verbose_shows_the_traceback(project: Path) -> None:
    (project / "train.py").write_text("1 / 0\n")
    assert "Traceback" not in run("check", "train.py").stderr
    assert "ZeroDivisionError" in run("check", "train.py", "-v").stderr.split("Traceback")[1]


def test_verbose_shows_the_traceback_of_a_crash(project: Path) -> None:
    assert "three.py" in run("check", "train.py:identity", "-v").stderr
    assert "Traceback" not in run("check", "train.py:identity").stderr


def test_formats_and_outputs_pair_up(project: Path) -> None:
    result = run(
        *("check", "train.py:conv"),
        *("--format", "json", "--output", "r.json"),
        *("--format", "junit", "--output", "r.xml"),
        *("--format", "text", "--output", "r.txt"),
        *("--format", "concise"),
    )
    assert result.exit_code == 1
    assert result.stdout == "Conv1d: fail fails-on-conv: a convolution\n"
    assert Report.from_json((project / "r.json").read_text()).status == "fail"
    assert len(list(ET.parse(project / "r.xml").iter("testcase"))) == 3
    assert "✗ fails-on-conv" in (project / "r.txt").read_text(encoding="utf-8")


def test_the_text_report_goes_to_stdout_when_all_formats_have_files(project: Path) -> None:
    result = run("check", "train.py", "--format", "json", "--output", "r.json")
    assert "✓ names-the-model" in result.stdout
    assert (project / "r.json").exists()


def test_a_baseline_keeps_known_findings_quiet(project: Path) -> None:
    run("check", "train.py:conv", "--format", "json", "--output", "base.json")
    result = run("check", "train.py:conv", "--baseline", "base.json")
    assert result.exit_code == 0
    assert "1 suppressed" in result.stdout


def test_color_is_chosen(project: Path) -> None:
    assert "\x1b[" in run("check", "train.py", "--color", "always").stdout
    assert "\x1b[" not in run("check", "train.py").stdout


@pytest.mark.skipif(os.name == "nt", reason="signals")
@pytest.mark.parametrize("moment", ["import", "run"])
def test_interrupting(project: Path, moment: str) -> None:
    wait = "import time\nprint('READY', flush=True)\ntime.sleep(60)\n"
    if moment == "import":
        (project / "train.py").write_text(wait)
    else:
        slow = f'\n@check\ndef zz_is_slow(target: Target):\n    """Slow."""\n    {wait.replace(chr(10), "; ")[:-2]}\n    yield\n'
        (project / "cli_test_checks" / "mine" / "three.py").write_text(CHECKS + slow)
    process = subprocess.Popen(
        [sys.executable, "-m", "debugkit", "check", "train.py"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "READY" in line:
            break
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in stderr
    if moment == "import":
        assert stderr.splitlines()[-1] == "debugkit: interrupted"
    else:
        assert "✓ names-the-model" in stdout
        assert "interrupted before it was judged" in stdout
        assert stdout.splitlines()[-1].endswith("exit 130: interrupted")


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_a_hasty_second_interrupt_does_not_cost_the_report(project: Path) -> None:
    hanging = "class Hangs:\n    def __iter__(self):\n        import time\n        print('READY', flush=True)\n        time.sleep(60)\n        yield\n"
    (project / "train.py").write_text(
        f"import torch\nfrom debugkit import Target\n{hanging}target = Target(torch.nn.Linear(1, 1), Hangs())\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "debugkit", "check", "train.py", "--select", "mine,label-balance"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "READY" in line:
            break
    while process.poll() is None:
        process.send_signal(signal.SIGINT)
        time.sleep(0.02)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr == ""
    assert stdout.splitlines()[-1].endswith("exit 130: interrupted")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize(
    "arguments", [["check", "train.py"], ["check", "train.py", "--format", "json"], ["list"], ["--help"]]
)
def test_a_full_disk_is_one_sentence(project: Path, arguments: list[str]) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "debugkit", *arguments], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 2
    said = "debugkit: standard output can't be written: No space left on device"
    assert done.stderr.splitlines()[-1] == said
    assert "Traceback" not in done.stderr
    with open("/dev/full", "w") as full:
        unheard = subprocess.run(
            [sys.executable, "-m", "debugkit", "check", "none.py"], stdout=subprocess.PIPE, stderr=full
        )
    assert unheard.returncode == 2


@pytest.mark.skipif(os.name == "nt", reason="descriptors")
@pytest.mark.parametrize("closed", ["1", "2"])
def test_closed_streams_are_no_mistake(project: Path, closed: str) -> None:
    command = f'exec "{sys.executable}" -m debugkit check train.py:conv {closed}>&-'
    assert subprocess.run(["sh", "-c", command], capture_output=True).returncode == 1


@pytest.mark.skipif(os.name == "nt", reason="pipes")
def test_a_reader_that_has_gone_is_no_finding(project: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "debugkit", "schema"], stdout=write, stderr=subprocess.PIPE, text=True
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (2, "")


def test_nothing_left_to_check_is_said(project: Path) -> None:
    result = run("check", "train.py", "--ignore", "all")
    assert result.exit_code == 3
    assert "every check was left out, so there was nothing to do · exit 3" in result.stdout


def test_a_check_file_that_ends_the_program_is_a_mistake(project: Path) -> None:
    (project / "cli_test_checks" / "mine" / "three.py").write_text("raise SystemExit(0)\n")
    assert "SystemExit: 0" in refused(run("list"))


def test_list(project: Path) -> None:
    assert "names-the-model" in run("list").stdout
    listed = json.loads(run("list", "--format", "json").stdout)
    mine = next(item for item in listed if item["id"] == "names-the-model")
    assert (mine["family"], mine["cost"], mine["provider"]) == ("mine", "static", "cli_test_checks")
    assert mine["options"] == [
        {"name": "names-the-model.level", "type": "int", "default": 0, "description": ""}
    ]


def test_explain(project: Path) -> None:
    text = run("explain", "logits-vs-probs").stdout
    for part in (
        "Why is this bad?",
        "What to do",
        "--set logits-vs-probs.tolerance=0.001",
        "training-step",
        "loss",
    ):
        assert part in text
    assert '[tool.debugkit.ignore]\n  logits-vs-probs = "' in text
    assert "did you mean `logits-vs-probs`?" in refused(run("explain", "logit-vs-prob"))


def test_new_writes_a_check_that_works_at_once(project: Path) -> None:
    (project / "pyproject.toml").write_text('[tool.debugkit]\nload = ["cli_test_checks_made"]\n')
    result = run("new", "zero-inputs", "--folder", "cli_test_checks_made", "--family", "my-family")
    assert result.exit_code == 0, result.output
    assert "debugkit test zero-inputs" in result.stdout
    tested = run("test", "zero-inputs")
    assert tested.exit_code == 0, tested.output
    assert tested.stdout.count("✓") == 2
    assert "my_family" in run("list").stdout
    assert "exists already" in refused(run("new", "zero-inputs", "--folder", "cli_test_checks_made"))


def test_new_says_what_to_configure(project: Path) -> None:
    assert 'load = ["other_checks_made"]' in run("new", "zero-inputs", "--folder", "other_checks_made").stdout


@pytest.mark.parametrize(
    ("check_id", "sentence"),
    [
        ("ZeroInputs", "(`zero-inputs`?)"),
        ("../x", "is no name for a check's id"),
        ("lambda", "is a Python keyword"),
        ("good-labels", "would be taken for an example"),
        ("logits-vs-probs", "exists already at"),
    ],
)
def test_new_refuses_bad_names(project: Path, check_id: str, sentence: str) -> None:
    assert sentence in refused(run("new", check_id))
    assert not (project / "my_checks").exists()


def test_test_reports_wrong_verdicts_and_missing_examples(project: Path) -> None:
    result = run("test", "names-the-model")
    assert result.exit_code == 1
    assert "✓ good: pass: Linear" in result.stdout
    assert "✗ bad_but_is_not: pass: Linear" in result.stdout
    assert "printed by a check" not in result.stdout


def test_test_survives_an_example_that_raises_or_is_missing(project: Path) -> None:
    source = CHECKS.replace("def bad_but_is_not():\n    return good()", "").replace(
        "    return Target(torch.nn.Linear(1, 1))", "    raise ValueError('oh')"
    )
    (project / "cli_test_checks" / "mine" / "three.py").write_text(source)
    result = run("test", "names-the-model")
    assert result.exit_code == 1
    assert "✗ good: raised ValueError: oh" in result.stdout
    assert "✗ has no `bad*()` example" in result.stdout


def test_schema_and_version() -> None:
    assert json.loads(run("schema").stdout) == Report.schema_of()
    assert "torch " in run("version").stdout
    assert run("--version").stdout.startswith("debugkit ")


def test_a_bug_of_debugkit_is_no_finding(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("debugkit.runner.Run.execute", lambda self: 1 / 0)
    assert "a bug in debugkit: ZeroDivisionError" in refused(run("check", "train.py"))
