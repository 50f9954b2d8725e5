"""Two processes under torchrun give the report of one, and share the work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from debugkit.weights.ranks import torchrun_ranks

PROGRAM = """
import json, sys
import numpy as np
from debugkit.weights.engine import analyse
from debugkit.weights.matrix import Matrix
from debugkit.weights.ranks import torchrun_ranks
from debugkit.weights.settings import Settings

def matrix(index):
    values = np.random.default_rng(index).standard_normal((40 + index, 64)).astype(np.float32)
    return Matrix(f"layers.{index}", "linear", values.shape, "float32", lambda: values)

with torchrun_ranks() as ranks:
    analysis = analyse([matrix(index) for index in range(9)], Settings(workers=1, ranks=ranks))
    rank = ranks.rank if ranks else "alone"
    layers = [(repr(layer), layer.eigenvalues.tolist()) for layer in analysis.layers]
    with open(f"{sys.argv[1]}/{rank}.json", "w") as file:
        json.dump({"layers": layers, "shares": analysis.shares}, file)
"""


def run(folder: Path, *launcher: str) -> None:
    program = folder / "program.py"
    program.write_text(PROGRAM)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launcher, str(program), str(folder)]
    subprocess.run(command, check=True, env=environment, timeout=120, capture_output=True)


def test_two_gloo_processes_give_the_report_of_one(tmp_path: Path) -> None:
    pytest.importorskip("torch.distributed")
    run(tmp_path)
    run(tmp_path, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    alone, *both = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("alone", "0", "1"))
    assert both[0]["layers"] == both[1]["layers"] == alone["layers"]
    assert both[0]["shares"] == both[1]["shares"]
    first, second = both[0]["shares"]
    assert {len(first), len(second)} == {4, 5}
    assert sorted(first + second) == sorted(alone["shares"][0])


def test_one_process_has_no_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with torchrun_ranks() as ranks:
        assert ranks is None
