"""What a watch writes for TensorBoard, read back with TensorBoard's own reader."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from debugkit.errors import UsageError
from debugkit.integrations.tensorboard import TensorBoard
from debugkit.watch.sinks import Histogram, openers

pytest.importorskip("tensorboard")

WATCH = """
    import sys
    import torch
    from torch.utils.tensorboard import SummaryWriter
    import debugkit

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    writer = SummaryWriter(sys.argv[1])
    log = writer if sys.argv[2] == "given" else f"tensorboard:{sys.argv[1]}"
    with debugkit.watch(model, optimizer=optimizer, log=log, log_every=5, samples=2, preflight=False):
        for step in range(12):
            x = torch.randn(16, 4)
            loss = torch.nn.functional.cross_entropy(model(x), (x[:, 0] > 0).long())
            loss.backward()
            optimizer.step()
    writer.add_scalar("own", 1.0, 0)
    writer.close()
"""
READ = """
    import json, sys
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(sys.argv[1], size_guidance={"scalars": 0, "histograms": 0, "tensors": 0}).Reload()
    tags = events.Tags()
    print(json.dumps({
        "scalars": {tag: [(one.step, one.value) for one in events.Scalars(tag)] for tag in tags["scalars"]},
        "histograms": {
            tag: [(one.step, sum(one.histogram_value.bucket)) for one in events.Histograms(tag)]
            for tag in tags["histograms"]
        },
        "texts": {
            tag: [(one.step, one.tensor_proto.string_val[0].decode()) for one in events.Tensors(tag)]
            for tag in tags["tensors"]
        },
    }))
"""


def python(code: str, *arguments: str) -> str:
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
@pytest.mark.parametrize("writer", ["given", "own"])
def test_the_event_files_hold_what_was_seen(tmp_path: Path, writer: str) -> None:
    python(WATCH, str(tmp_path / "runs"), writer)
    read: dict[str, Any] = json.loads(python(READ, str(tmp_path / "runs")))
    losses = next(values for tag, values in read["scalars"].items() if tag.startswith("debugkit/loss/"))
    assert [step for step, _ in losses] == [1, 5, 10]
    assert read["scalars"]["debugkit/lr/SGD"][0][1] == pytest.approx(0.1)
    assert read["scalars"]["own"] == [[0, 1.0]]
    assert {tag.split("/")[0] for tag in read["scalars"]} == {"debugkit", "own"}
    weights = read["histograms"]["debugkit/weights/0.weight"]
    assert weights == [[1, 32.0], [5, 32.0], [10, 32.0]]
    assert "debugkit/gradients/2.bias" in read["histograms"]
    texts = {tag: values[0][1] for tag, values in read["texts"].items()}
    assert "zero\\-grad" not in texts["debugkit/report/text_summary"]
    assert "| zero-grad | fail |" in texts["debugkit/report/text_summary"]
    assert "zero-grad fails at step 3" in texts["debugkit/alert/text_summary"]
    assert "| input | predicted | target |" in texts["debugkit/samples/text_summary"]


class Pages:
    """Takes what is written."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def add_text(self, tag: str, text: str, step: int) -> None:
        self.texts.append(text)

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        raise AssertionError

    def add_histogram_raw(self, tag: str, **values: Any) -> None:
        assert values["bucket_limits"][-1] == values["max"] == 1.0
        self.texts.append(tag)

    def flush(self) -> None:
        pass


def test_text_of_the_data_is_no_markup() -> None:
    pages = Pages()
    (opener,) = openers(pages)
    sink = opener()
    sink.table(1, "samples", ["input"], [["<b>|*x*|\n`y` [a](b)"]])
    sink.histograms(1, {"weights/a b": Histogram(0.0, 1.0, (1, 2), 2.0, 2.0)})
    sink.close()
    assert pages.texts[0].splitlines()[2] == r"| &lt;b>\|\*x\*\| ↵ \`y\` \[a\]\(b\) |"
    assert pages.texts[1] == "debugkit/weights/a_b"


def test_a_missing_package_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UsageError, match=r'pip install "debugkit\[tensorboard\]"'):
        TensorBoard("runs")
    with pytest.raises(UsageError, match="needs a folder"):
        openers("tensorboard:")
