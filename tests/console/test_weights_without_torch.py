"""``debugkit weights`` imports no torch, says the same as with it, and knows the other checks when they are named."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import debugkit.checks as builtin
import pytest
import torch
from safetensors.torch import save_file

from debugkit.checkpoints.checkpoint import Checkpoint
from debugkit.evidence import buildable
from debugkit.registry import load, load_of_checkpoints

PROGRAM = """
import sys
from debugkit import cli
code = 0
try:
    cli.commands(["weights", *sys.argv[1:]])
except SystemExit as end:
    code = end.code
print("torch" in sys.modules, "debugkit.probes.training_step" in sys.modules, file=sys.stderr)
raise SystemExit(code)
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    state = {f"layers.{block}.weight": torch.randn(64, 64) for block in range(3)}
    state["layers.1.weight"][2, 3] = float("nan")
    save_file(state, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def run(file: Path, *arguments: str, torch_first: bool = False) -> subprocess.CompletedProcess[str]:
    program = f"import torch\n{PROGRAM}" if torch_first else PROGRAM
    command = [sys.executable, "-c", program, str(file), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=file.parent)


def test_the_verdicts_are_those_of_a_process_with_torch(file: Path) -> None:
    light = run(file, "--format", "json")
    full = run(file, "--format", "json", torch_first=True)
    assert light.stderr.split()[-2:] == ["False", "False"]
    assert full.stderr.split()[-2:] == ["True", "True"]
    assert light.returncode == full.returncode == 1
    results = [
        [
            (result["check"], result["status"], result["findings"])
            for result in json.loads(done.stdout)["results"]
        ]
        for done in (light, full)
    ]
    assert results[0] == results[1]
    assert {check: status for check, status, _ in results[0]} == {
        "alpha-outliers": "pass",
        "finite-weights": "fail",
    }


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--ignore", "eval-mode"), 1, ""),
        (("--set", "training-step.batches=1"), 2, "training-step"),
        (("--select", "alpha-outlier"), 2, "did you mean `alpha-outliers`?"),
        (("--select", "eval-mode"), 3, ""),
    ],
)
def test_other_checks_are_known_when_they_are_named(
    file: Path, arguments: tuple[str, ...], code: int, words: str
) -> None:
    done = run(file, *arguments)
    assert done.returncode == code, done.stderr
    assert words in done.stderr


def test_a_suppression_of_another_check_is_no_mistake(file: Path) -> None:
    (file.parent / "pyproject.toml").write_text(
        '[tool.debugkit]\nsuppress = [{check = "eval-mode", reason = "known"}]\n'
    )
    done = run(file, "--format", "json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["notices"] == []


def test_the_list_names_exactly_the_checks_that_can_judge_a_checkpoint() -> None:
    able = {
        check.function.__module__.removeprefix("debugkit.checks.")
        for check in load().values()
        if buildable(check.signature, [Checkpoint]) and check.provider == "builtin"
    }
    assert set(builtin.OF_CHECKPOINTS) == able
    assert len(load_of_checkpoints()) == len(able)
