"""Metrics of a watched loop: what is measured, where it goes, and that nothing of it reaches the loop."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import debugkit
from debugkit.errors import UsageError
from debugkit.probes.movement import by_block
from debugkit.testing import blobs, mlp
from debugkit.watch.measures import histogram
from debugkit.watch.samples import Samples
from debugkit.watch.sinks import Histogram, JsonLines, openers


class Kept:
    """A sink that keeps what it is given."""

    def __init__(self) -> None:
        self.numbers: dict[int, dict[str, float]] = {}
        self.spreads: dict[int, dict[str, Histogram]] = {}
        self.tables: list[tuple[int, str, list[Sequence[str]]]] = []
        self.alerts: list[str] = []
        self.closed = 0

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self.numbers[step] = dict(values)

    def histograms(self, step: int, values: Mapping[str, Histogram]) -> None:
        self.spreads[step] = dict(values)

    def table(self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        self.tables.append((step, name, list(rows)))

    def alert(self, step: int, title: str, text: str) -> None:
        self.alerts.append(title)

    def close(self) -> None:
        self.closed += 1


def train(log: Any, *, clear: bool = True, model: torch.nn.Module | None = None, **options: Any) -> Any:
    torch.manual_seed(0)
    model = model or mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with debugkit.watch(model, optimizer=optimizer, log=log, log_every=5, preflight=False, **options) as seen:
        loader = blobs()
        for x, y in (batch for _ in range(3) for batch in loader):
            if clear:
                optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    return seen, model


def test_numbers_at_the_first_step_and_every_so_many() -> None:
    kept = Kept()
    seen, model = train(kept)
    steps = seen.record.steps
    assert [*kept.numbers] == [1, *range(5, steps + 1, 5)]
    last = kept.numbers[max(kept.numbers)]
    weight, gradient = dict(model.named_parameters())["2.weight"], kept.spreads[5]["gradients/2.weight"]
    assert sum(gradient.counts) == weight.numel()
    assert last["lr/SGD"] == 0.1
    assert last["layers/2.weight"] > 0
    assert last["moved/0"] > kept.numbers[1]["moved/0"] > 0
    assert {"seconds_per_step", "steps_per_second", "grad_norm/SGD", "update/SGD", "memory_mb"} <= last.keys()
    assert all(math.isfinite(value) for value in last.values())
    assert kept.closed == 1
    assert kept.tables[-1][1] == "report"
    assert not kept.alerts


def test_training_is_as_without_and_the_random_state_too() -> None:
    _, alone = train(None)
    state = torch.get_rng_state()
    _, logged = train(Kept(), samples=2)
    assert torch.equal(state, torch.get_rng_state())
    for one, other in zip(alone.parameters(), logged.parameters(), strict=True):
        assert torch.equal(one, other)
    assert not torch.nn.modules.module._global_forward_hooks


def test_one_alert_for_a_run_that_fails() -> None:
    kept = Kept()
    train(kept, clear=False)
    assert kept.alerts == ["zero-grad fails at step 3"]


def test_a_destination_that_fails_ends_its_log_and_nothing_else(tmp_path: Path) -> None:
    class Full(Kept):
        def scalars(self, step: int, values: Mapping[str, float]) -> None:
            raise OSError(28, "No space left on device")

    kept = Kept()
    (tmp_path / "file").write_text("")
    seen, _ = train([Full(), kept, tmp_path / "file" / "metrics.jsonl"])
    assert len(kept.numbers) > 2
    assert any("Full ended early" in notice and "No space" in notice for notice in seen.report.notices)
    assert any("did not begin" in notice for notice in seen.report.notices)
    assert seen.report["zero-grad"].status == "pass"


def test_dead_units_are_those_that_no_sample_wakes() -> None:
    model = torch.nn.Sequential(
        torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Dropout(0.1), torch.nn.Linear(8, 2)
    )
    with torch.no_grad():
        model[0].bias[:3] = -1e6
    kept = Kept()
    train(kept, model=model)
    values = kept.numbers[10]
    assert 1 > values["layer_dead/1"] == values["dead_units"] >= 3 / 8
    assert "layer_dead/2" not in values
    assert "dead_units" not in kept.numbers[1]


def test_a_compiled_program_gets_no_hook() -> None:
    kept = Kept()
    torch.manual_seed(0)
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with debugkit.watch(model, optimizer=optimizer, log=kept, log_every=1, preflight=False):
        compiled = torch.compile(model, backend="eager")
        for x, y in blobs():
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(compiled(x), y).backward()
            optimizer.step()
            assert not torch.nn.modules.module._global_forward_hooks
    assert len(kept.numbers) > 2


def test_samples_of_a_classifier_show_its_label() -> None:
    kept = Kept()
    train(kept, samples=3)
    rows = next(rows for step, name, rows in reversed(kept.tables) if name == "samples")
    assert len(rows) == 3
    assert all(row[2].isdigit() and re.fullmatch(r"\d \(\d+%\)", row[1]) for row in rows)


def test_samples_of_a_language_model_are_next_tokens() -> None:
    from debugkit.watch.recorder import Recorder

    ids = torch.tensor([[5, 6, 7, 8]])
    logits = torch.nn.functional.one_hot(torch.tensor([[6, 7, 9, 0]]), 10).float()
    shifted = Samples(Recorder(), 1)
    shifted.begin()
    shifted._look(torch.nn.Identity(), (ids,), {"labels": ids.clone()}, {"logits": logits})
    assert shifted.end() == [("5", "6 7 9", "6 7 8")]
    masked = Samples(Recorder(), 1)
    masked.begin()
    labels = torch.tensor([[-100, 3, -100, -100]])
    masked._look(torch.nn.Identity(), (), {"input_ids": ids, "labels": labels}, {"logits": logits})
    assert masked.end() == [("5 6", "7", "3")]


def test_a_histogram_counts_finite_elements() -> None:
    one = histogram(torch.tensor([0.0, 1.0, 2.0, math.nan, math.inf]))
    assert one is not None
    assert (one.low, one.high, sum(one.counts), one.left_out, one.total) == (0.0, 2.0, 3, 2, 3.0)
    flat = histogram(torch.full((7,), 2.0, dtype=torch.bfloat16))
    assert flat is not None
    assert flat.counts[0] == 7
    for odd in (
        torch.empty(0),
        torch.tensor([math.nan]),
        torch.ones(3, dtype=torch.long),
        torch.ones(2, device="meta"),
    ):
        assert histogram(odd) is None


def test_blocks_are_the_outermost_modules_that_differ() -> None:
    class Wrapped(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = torch.nn.ModuleDict({"body": torch.nn.Linear(8, 4), "head": torch.nn.Linear(4, 2)})

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net["head"](self.net["body"](x).tanh())

    seen, _ = train(None, model=Wrapped())
    shares = dict(by_block(seen.record.optimizers[0].layers))
    assert [*shares] == ["net.body", "net.head"]
    assert all(share > 0 for share in shares.values())
    note = seen.report["weights-moving"].findings[-1].message
    assert "moved since the first look" in note
    assert "`net.head`" in note


def test_json_lines_hold_no_bare_nan(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "runs" / "metrics.jsonl")
    lines.scalars(3, {"loss/train.py:4": math.nan, "eval_loss": -math.inf})
    lines.close()
    text = (tmp_path / "runs" / "metrics.jsonl").read_text()
    assert json.loads(text) == {"step": 3, "loss": {"train.py:4": "NaN"}, "eval_loss": "-Infinity"}


def test_destinations_are_judged_before_anything_is_opened(tmp_path: Path) -> None:
    assert openers(None) == []
    assert len(openers([tmp_path / "a.jsonl", Kept()])) == 2
    assert not any(tmp_path.iterdir())
    with pytest.raises(UsageError, match="not a file"):
        openers(tmp_path)
    with pytest.raises(UsageError, match="not an `int`"):
        debugkit.watch(log=3)
