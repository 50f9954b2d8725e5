"""``debugkit watch`` as a command: its output, exit codes, metrics, and what it leaves to the program."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

PROGRAM = """
    import os
    os.environ["MARK"] = "set before torch is imported"
    import argparse, sys
    assert "torch" not in sys.modules
    import torch
    from helper import width

    parser = argparse.ArgumentParser()
    parser.add_argument("--mistake", default="")
    parser.add_argument("-q", action="store_true")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, width), torch.nn.ReLU(), torch.nn.Linear(width, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def main():
        for step in range(300 if arguments.mistake == "endless" else 30):
            if arguments.mistake != "clear":
                optimizer.zero_grad()
            x = torch.randn(8, 4)
            if arguments.mistake == "crash" and step == 20:
                x = x[:, :3]
            loss = (model(x) - x.sum(1, keepdim=True)).pow(2).mean()
            loss.backward()
            optimizer.step()
            if arguments.mistake == "endless":
                import time
                time.sleep(0.1)
                print("going", flush=True)

    if __name__ == "__main__":
        main()
        print(sys.argv[1:], __name__, sum(p.double().sum().item() for p in model.parameters()))
        print("on stderr", file=sys.stderr)
        if arguments.mistake == "exit":
            sys.exit(7)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "train.py").write_text(textwrap.dedent(PROGRAM))
    (tmp_path / "helper.py").write_text("width = 8\n")
    return tmp_path


def start(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command], cwd=folder, capture_output=True, text=True, check=False)


def watch(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return start(folder, "-m", "debugkit", "watch", *arguments)


@pytest.mark.parametrize("mistake", ["", "exit"])
def test_output_and_exit_code_are_the_programs(folder: Path, mistake: str) -> None:
    alone = start(folder, "train.py", "--mistake", mistake, "-q")
    seen = watch(folder, "train.py", "--mistake", mistake, "-q")
    assert alone.stdout
    assert (seen.stdout, seen.returncode) == (alone.stdout, alone.returncode)
    assert "on stderr" in seen.stderr
    assert "zero-grad" in seen.stderr


def test_a_module_runs_as_with_m(folder: Path) -> None:
    alone, seen = start(folder, "-m", "train", "-q"), watch(folder, "-m", "train", "-q")
    assert (seen.stdout, seen.returncode) == (alone.stdout, 0)


def test_a_crash_shows_the_programs_own_traceback_and_the_report(folder: Path) -> None:
    alone, seen = (
        start(folder, "train.py", "--mistake", "crash"),
        watch(folder, "train.py", "--mistake", "crash"),
    )
    assert seen.returncode == alone.returncode == 1
    assert alone.stderr in seen.stderr
    assert "the loop ended after 20 optimizer steps with RuntimeError: mat1 and mat2" in seen.stderr


def test_stop_on_fail_ends_the_program_and_metrics_are_written(folder: Path) -> None:
    seen = watch(
        folder,
        *("--stop-on", "fail", "--log", "metrics.jsonl", "--log-every", "1", "--format", "json"),
        *("--output", "report.json", "train.py", "--mistake", "clear"),
    )
    assert seen.returncode == 1
    assert not seen.stdout
    assert "zero-grad fails at step 3" in seen.stderr
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert next(line["alert"]["title"] for line in lines if "alert" in line) == "zero-grad fails at step 3"
    lines = [line for line in lines if "loss" in line]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert lines[0]["lr"] == {"SGD": 0.01}
    assert lines[0]["grad_norm"]["SGD"] > 0
    assert set(lines[0]["layers"]) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    report = json.loads((folder / "report.json").read_text())
    assert {result["status"] for result in report["results"] if result["check"] == "zero-grad"} == {"fail"}


def test_a_missing_script_is_a_usage_error(folder: Path) -> None:
    seen = watch(folder, "trian.py")
    assert (seen.returncode, seen.stderr) == (2, "debugkit: there is no file `trian.py`\n")


def test_a_program_without_torch_is_just_run(folder: Path) -> None:
    (folder / "other.py").write_text("print('done')\n")
    seen = watch(folder, "other.py")
    assert (seen.stdout, seen.returncode) == ("done\n", 0)
    assert "did not import torch" in seen.stderr


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_an_interrupt_gives_the_report_and_ends_by_the_signal(folder: Path) -> None:
    command = [sys.executable, "-m", "debugkit", "watch", "train.py", "--mistake", "endless"]
    with subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as program:
        assert program.stdout is not None
        program.stdout.readline()
        time.sleep(0.5)
        program.send_signal(signal.SIGINT)
        _, said = program.communicate(timeout=60)
    assert program.returncode == -signal.SIGINT
    assert "KeyboardInterrupt" in said
    assert "optimizer-step" in said
