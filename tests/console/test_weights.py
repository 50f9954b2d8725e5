from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import save_file

from debugkit import cli
from debugkit.report import Report


def trained(blocks: int = 6, width: int = 128) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    state = {}
    for block in range(blocks):
        left, right = (torch.linalg.qr(torch.randn(width, width // 2)).Q for _ in range(2))
        weight = torch.randn(width, width) * 0.05
        weight += (left * 4 * torch.arange(1, width // 2 + 1) ** -0.7) @ right.T
        state[f"layers.{block}.weight"] = weight
        state[f"layers.{block}.bias"] = torch.zeros(width)
    return state


def saved(folder: Path, state: dict[str, torch.Tensor], name: str = "model.safetensors") -> Path:
    save_file({key: value.contiguous() for key, value in state.items()}, folder / name)
    return folder / name


def weights(*arguments: object) -> Result:
    return CliRunner().invoke(cli.commands, ["weights", *map(str, arguments)])


def report_of(*arguments: object) -> tuple[Report, int]:
    result = weights(*arguments, "--format", "json")
    return Report.from_json(result.stdout), result.exit_code


def test_a_healthy_checkpoint_is_clean(tmp_path: Path) -> None:
    report, code = report_of(saved(tmp_path, trained()))
    assert code == 0
    assert {result.check: result.status for result in report.results} == {
        "alpha-outliers": "pass",
        "finite-weights": "pass",
    }
    assert "6 weight matrices judged" in report["alpha-outliers"].findings[0].message


@pytest.mark.parametrize(
    ("check", "level", "spoil"),
    [
        ("finite-weights", "fail", lambda weight: weight.index_fill(0, torch.tensor([3]), float("nan"))),
        ("alpha-outliers", "fail", torch.zeros_like),
        ("alpha-outliers", "warn", lambda weight: torch.randn_like(weight) * 0.05),
    ],
)
def test_planted_faults_are_found_and_marked(tmp_path: Path, check: str, level: str, spoil: object) -> None:
    state = trained()
    state["layers.3.weight"] = spoil(state["layers.3.weight"])  # type: ignore[operator]
    result = weights(saved(tmp_path, state), "--fail-on", "warn")
    assert result.exit_code == 1
    report, _ = report_of(tmp_path)
    assert report[check].status == level
    assert [finding.where for finding in report[check].active] == ["layers.3.weight"]
    sign = "!" if level == "warn" else "✗"
    assert any(line.startswith(f"{sign} layers.3 ") for line in result.stdout.splitlines())


def test_a_user_s_mistake_is_one_sentence(tmp_path: Path) -> None:
    for arguments in (
        [tmp_path / "absent"],
        [saved(tmp_path, trained()), "--compare", tmp_path / "absent"],
        [tmp_path, "--base", tmp_path],
        [tmp_path, "--layers", "table.xlsx"],
        [tmp_path, "--plot", "plot.png"],
        [tmp_path, "--layer", "layers.9"],
        [tmp_path, "--select", "alpha-outlier"],
    ):
        result = weights(*arguments)
        assert result.exit_code == 2, arguments
        assert result.stderr.startswith("debugkit: ")
        assert "Traceback" not in result.stderr


def test_a_selection_of_other_moments_checks_nothing(tmp_path: Path) -> None:
    assert weights(saved(tmp_path, trained()), "--select", "label-balance").exit_code == 3


def test_layers_are_written_and_drawn(tmp_path: Path) -> None:
    path = saved(tmp_path, trained())
    for name in ("layers.csv", "layers.json"):
        assert weights(path, "--layers", tmp_path / name, "--plot", tmp_path / "p.svg").exit_code == 0
    with (tmp_path / "layers.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["layer"] for row in rows] == [f"layers.{block}.weight" for block in range(6)]
    assert [row["alpha"] for row in json.loads((tmp_path / "layers.json").read_text())] == [
        pytest.approx(float(row["alpha"])) for row in rows
    ]
    assert ElementTree.parse(tmp_path / "p.svg").getroot().tag.endswith("svg")


def test_the_text_fits_into_100_columns(tmp_path: Path) -> None:
    state = {f"a.very.long.prefix.of.names.{name}": value for name, value in trained().items()}
    text = weights(saved(tmp_path, state), "--layer", "layers.2").stdout
    assert max(map(len, text.splitlines())) <= 100
    assert "alpha by depth" in text
    assert "spectrum of a.very.long.prefix.of.names.layers.2.weight" in text


def test_what_moved_is_shown_the_farthest_first(tmp_path: Path) -> None:
    before = trained()
    after = {f"model.{name}": value.clone() for name, value in before.items()}
    after["model.layers.2.weight"] *= 1.01
    after["model.layers.4.weight"] *= 1.1
    after["head.weight"] = torch.randn(2, 128)
    path, other = saved(tmp_path, before), saved(tmp_path, after, "after.safetensors")
    text = weights(path, "--compare", other).stdout
    moved = text[text.index("what moved") :]
    assert "2 of 12 shared tensors changed" in moved
    assert moved.index("layers.4") < moved.index("layers.2")
    assert "10%" in moved
    assert "1.00%" in moved
    assert "head.weight" in moved


def test_a_budget_that_is_used_up_leaves_layers_out(tmp_path: Path) -> None:
    report, code = report_of(saved(tmp_path, trained()), "--budget", "0.000001")
    assert {result.status for result in report.results} == {"skip"}
    assert code == 3


def test_two_processes_give_the_report_of_one(tmp_path: Path) -> None:
    path = saved(tmp_path, trained())
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = ["-m", "debugkit", "weights", str(path)]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    texts = []
    for arguments in (command, [*launcher, *command]):
        done = subprocess.run(
            [sys.executable, *arguments],
            env=environment,
            timeout=120,
            capture_output=True,
            text=True,
            check=True,
        )
        texts.append([line for line in done.stdout.splitlines() if " in " not in line or "exit" not in line])
    assert texts[0] == texts[1]


def test_zeros_in_a_checkpoint_that_says_nothing_of_training_are_a_note(tmp_path: Path) -> None:
    state = {"a.weight": torch.randn(40, 40), "offsets.weight": torch.zeros(40, 40)}
    report, code = report_of(saved(tmp_path, state))
    assert code == 0
    assert report["alpha-outliers"].status == "pass"
    assert "`offsets.weight`" in report["alpha-outliers"].findings[0].message
