"""What a watch logs to Weights & Biases, offline, read back from the run's own file."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from debugkit.errors import UsageError
from debugkit.integrations.wandb import WeightsAndBiases
from debugkit.watch.sinks import openers

pytest.importorskip("wandb")
pytestmark = pytest.mark.slow

PROGRAM = """
    import sys
    import torch

    own = sys.argv[1] == "own"
    if own:
        import wandb

        run = wandb.init(project="mine", settings=wandb.Settings(console="off", silent=True))
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(12):
        x = torch.randn(16, 4)
        loss = torch.nn.functional.cross_entropy(model(x), (x[:, 0] > 0).long())
        loss.backward()
        optimizer.step()
        if own:
            wandb.log({"mine": loss.item()})
    print(sum(p.double().sum().item() for p in model.parameters()), run.step if own else "")
"""
READ = """
    import json, sys
    from wandb.proto.wandb_internal_pb2 import Record

    found = {"history": [], "alerts": []}
    for line in sys.stdin:
        record = Record()
        record.ParseFromString(bytes.fromhex(line))
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            found["history"].append({one.key or "/".join(one.nested_key): json.loads(one.value_json) for one in items})
        elif record.WhichOneof("record_type") == "alert":
            found["alerts"].append(record.alert.title)
    print(json.dumps(found))
"""


def records(path: Path) -> Iterator[bytes]:
    """The records of a run's file: blocks of 32 KiB after a header of 7 bytes, records in parts."""
    data, place, parts = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if (room := 32_768 - place % 32_768) < 7:
            place += room
            continue
        length, kind = struct.unpack_from("<HB", data, place + 4)
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield parts
            parts = b""


def train(folder: Path, kind: str, *options: str) -> str:
    (folder / "train.py").write_text(textwrap.dedent(PROGRAM))
    command = [sys.executable, *(["-m", "debugkit", "watch", *options] if options else []), "train.py", kind]
    environment = {**os.environ, "WANDB_MODE": "offline", "WANDB_DIR": str(folder)}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=True
    ).stdout


def read(folder: Path) -> dict[str, Any]:
    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    lines = "\n".join(record.hex() for record in records(path))
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(READ)]
    found: dict[str, Any] = json.loads(
        subprocess.run(command, input=lines, capture_output=True, text=True, check=True).stdout
    )
    return found


def test_an_own_run_holds_what_was_seen(tmp_path: Path) -> None:
    train(tmp_path, "none", "--log", "wandb:watched", "--log-every", "5", "--samples", "2", "--no-preflight")
    found = read(tmp_path)
    assert found["alerts"] == ["zero-grad fails at step 3"]
    rows = found["history"]
    losses = [row for row in rows if any(key.startswith("debugkit/loss/") for key in row)]
    assert [row["debugkit/step"] for row in losses] == [1, 5, 10]
    keys = {key for row in rows for key in row}
    assert {"debugkit/samples/nrows", "debugkit/report/nrows"} <= keys
    values = next(row[key] for row in rows for key in row if key.endswith("weights/0.weight/values"))
    assert sum(values) == 32


def test_the_programs_own_run_is_used_and_its_steps_are_as_without(tmp_path: Path) -> None:
    (tmp_path / "alone").mkdir()
    (tmp_path / "seen").mkdir()
    alone = train(tmp_path / "alone", "own")
    seen = train(tmp_path / "seen", "own", "--log", "wandb", "--log-every", "5", "--no-preflight")
    assert seen == alone
    before, now = read(tmp_path / "alone")["history"], read(tmp_path / "seen")["history"]
    assert [row["_step"] for row in now if "mine" in row] == [row["_step"] for row in before if "mine" in row]
    assert [row["mine"] for row in now if "mine" in row] == [row["mine"] for row in before]
    assert [row["debugkit/step"] for row in now if "debugkit/step" in row][:3] == [1, 5, 10]
    assert now[-1]["debugkit/report/nrows"] > 0


def test_a_missing_package_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UsageError, match=r'pip install "debugkit\[wandb\]"'):
        WeightsAndBiases(None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r'`wandb:x` needs `wandb`: `pip install "debugkit\[wandb\]"`'):
        openers("wandb:x")
