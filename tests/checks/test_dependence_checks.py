"""Healthy and awkward programs before the checks that read what outputs depend on."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from debugkit import Target
from debugkit.registry import Registry, load
from debugkit.report import Report
from debugkit.runner import Run
from debugkit.testing import blobs, mlp

CHECKS = "batch-independence,bidirectional,causal-leak,input-dependence,output-variety,packing-isolation"


@pytest.fixture(scope="module")
def registry() -> Registry:
    return load()


@pytest.fixture
def judge(registry: Registry) -> Callable[[Target], Report]:
    def run(target: Target) -> Report:
        torch.manual_seed(0)
        return Run(target, select=CHECKS, config={"max-cost": "backward"}, registry=registry).execute()

    return run


def said(report: Report, check: str) -> str:
    result = report[check]
    return " / ".join([result.reason or "", *(f"{f.level}: {f.message}" for f in result.findings)])


def loud(report: Report) -> dict[str, str]:
    return {r.check: said(report, r.check) for r in report.results if r.status in ("warn", "fail", "error")}


def words(rows: int = 16, length: int = 10, vocabulary: int = 20) -> torch.Tensor:
    return torch.randint(4, vocabulary, (rows, length), generator=torch.Generator().manual_seed(0))


def halves(*tensors: torch.Tensor) -> list[tuple[torch.Tensor, ...]]:
    return list(zip(*(tensor.split(8) for tensor in tensors), strict=True))


class Contrast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = mlp(classes=4), mlp(classes=4)

    def forward(self, x, other):
        return F.normalize(self.one(x), dim=-1) @ F.normalize(self.other(other), dim=-1).T


def test_similarities_of_all_pairs_mix_by_design(judge) -> None:
    x = torch.randn(16, 8)
    target = Target(
        Contrast(),
        halves(x, x + 0.1),
        training_step=lambda model, batch: F.cross_entropy(model(*batch) * 5, torch.arange(len(batch[0]))),
    )
    report = judge(target)
    assert not loud(report)
    assert "pair of rows" in said(report, "batch-independence")


def test_batch_norm_without_running_statistics_is_told(judge) -> None:
    model = nn.Sequential(
        nn.Linear(8, 8), nn.BatchNorm1d(8, track_running_stats=False), nn.ReLU(), nn.Linear(8, 2)
    )
    report = judge(Target(model, blobs(), nn.CrossEntropyLoss()))
    assert not loud(report)
    assert "batch_norm" in said(report, "batch-independence")


def test_experts_with_room_for_few_are_told_apart_from_a_leak(judge) -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.router = nn.Linear(8, 2)
            self.experts = nn.ModuleList(mlp() for _ in range(2))

        def forward(self, x):
            scores = self.router(x).softmax(-1)
            best, choice = scores.max(-1)
            out = x.new_zeros(len(x), 2)
            for number, expert in enumerate(self.experts):
                rows = (choice == number).nonzero().flatten()[: max(1, len(x) // 4)]
                out = out.index_add(0, rows, expert(x[rows]) * best[rows, None])
            return out

    report = judge(Target(Experts(), blobs(), nn.CrossEntropyLoss()))
    assert not loud(report)


def test_nodes_of_a_graph_are_not_judged(judge) -> None:
    class Graph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 2)

        def forward(self, x, edges):
            h = self.first(x).relu()
            return self.last(h.index_add(0, edges[1], h[edges[0]]))

    x, edges = torch.randn(12, 8), torch.stack([torch.arange(12), torch.arange(12).roll(1)])
    target = Target(Graph(), [((x, edges), (x[:, 0] > 0).long())] * 2, nn.CrossEntropyLoss())
    report = judge(target)
    assert not loud(report)
    assert report["batch-independence"].status == "skip"


def test_a_graph_held_by_the_model_is_a_note(judge) -> None:
    class Graph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(8, 2)
            self.register_buffer("adjacency", torch.eye(12) + torch.eye(12).roll(1, 0))

        def forward(self, x):
            return self.adjacency @ self.body(x)

    x = torch.randn(12, 8)
    report = judge(Target(Graph(), [(x, (x[:, 0] > 0).long())] * 2, nn.CrossEntropyLoss()))
    assert not loud(report)
    assert "no other number of rows" in said(report, "batch-independence")


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_time_may_come_first(judge, kind) -> None:
    """`[length, batch]` tokens with targets of the same shape, as in older language models."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.body, self.head = nn.Embedding(20, 8), kind(8, 8), nn.Linear(8, 20)

        def forward(self, ids):
            return self.head(self.body(self.embed(ids))[0])

    ids = words(rows=9, length=18)
    rows = [(part[:-1], part[1:]) for part in ids.split(6, dim=1)]
    loss = lambda scores, y: F.cross_entropy(scores.flatten(0, 1), y.flatten())  # noqa: E731
    assert not loud(judge(Target(Net(), rows, loss)))


def test_a_head_and_gates_that_start_at_zero_hide_nothing(judge) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.places = nn.Embedding(20, 8), nn.Parameter(torch.randn(10, 8))
            self.mix = nn.MultiheadAttention(8, 2, batch_first=True)
            self.gate, self.head = nn.Parameter(torch.zeros(())), nn.Linear(8, 20)
            nn.init.zeros_(self.head.weight)

        def forward(self, ids):
            h = self.embed(ids) + self.places
            return self.head(h + self.gate * self.mix(h, h, h, need_weights=False)[0])

    ids = words()
    hidden = torch.rand(ids.shape, generator=torch.Generator().manual_seed(1)) < 0.3
    rows = halves(ids.masked_fill(hidden, 1), ids.masked_fill(~hidden, -100))
    loss = lambda scores, y: F.cross_entropy(scores.flatten(0, 1), y.flatten())  # noqa: E731
    report = judge(Target(Net(), rows, loss))
    assert not loud(report)
    assert "move the" in said(report, "bidirectional")


def test_prefix_models_read_their_prefix_both_ways(judge) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.places, self.mix = nn.Embedding(20, 8), nn.Embedding(16, 8), nn.Linear(8, 24)
            self.head = nn.Linear(8, 20)

        def forward(self, ids):
            h = self.embed(ids) + self.places.weight[: ids.shape[1]]
            mask = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril()
            mask[:6, :6] = True
            q, k, v = self.mix(h).chunk(3, -1)
            return self.head(h + F.scaled_dot_product_attention(q, k, v, attn_mask=mask))

    def step(model, batch):
        (ids,) = batch
        scores = model(ids)[:, 5:-1]
        return F.cross_entropy(scores.flatten(0, 1), ids[:, 6:].flatten())

    report = judge(Target(Net(), halves(words(length=14)), training_step=step))
    assert not loud(report)
    assert report["causal-leak"].status == "pass"


def test_a_bag_of_words_reads_no_order_by_design(judge) -> None:
    model = nn.Sequential(nn.EmbeddingBag(20, 8), nn.ReLU(), nn.Linear(8, 2))
    ids = words()
    assert not loud(judge(Target(model, halves(ids, (ids[:, 0] > 10).long()), nn.CrossEntropyLoss())))


def test_sampling_models_are_compared_with_the_same_noise(judge) -> None:
    class Vae(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encode, self.decode = nn.Linear(8, 8), nn.Linear(4, 8)

        def forward(self, x):
            mean, spread = self.encode(x).chunk(2, -1)
            return self.decode(mean + spread.exp() * torch.randn_like(mean)), mean, spread

    x = torch.randn(16, 8)
    target = Target(
        Vae(), halves(x), training_step=lambda model, batch: F.mse_loss(model(batch[0])[0], batch[0])
    )
    report = judge(target)
    assert not loud(report)
    assert report["batch-independence"].status == "pass"


@pytest.mark.parametrize("precision", ["bf16", None])
def test_low_precision_is_no_dependence(judge, precision) -> None:
    model = nn.Sequential(nn.Linear(8, 32), nn.LayerNorm(32), nn.GELU(), nn.Linear(32, 2))
    target = Target(
        model if precision else model.to(torch.float64),
        blobs() if precision else [(x.double(), y) for x, y in blobs()],
        nn.CrossEntropyLoss(),
        precision=precision,
    )
    assert not loud(judge(target))


def test_an_input_that_is_the_same_in_all_rows_is_not_missed(judge) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp()

        def forward(self, x, scale, mask=None):
            return self.body(x)

    x = torch.randn(16, 8)
    rows = [
        {"x": part, "scale": torch.ones(8), "mask": torch.ones(8, 8), "labels": (part[:, 0] > 0).long()}
        for part in x.split(8)
    ]
    assert not loud(judge(Target(Net(), rows, nn.CrossEntropyLoss())))


def test_strides_that_skip_pixels_are_no_ignored_features(judge) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)
    )
    x = torch.randn(16, 3, 8, 8)
    assert not loud(judge(Target(model, halves(x, (x.mean((1, 2, 3)) > 0).long()), nn.CrossEntropyLoss())))


def test_categories_of_one_column_each_need_no_order(judge) -> None:
    class Columns(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(15, 8)
            layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
            self.mix, self.head = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False), nn.Linear(8, 2)

        def forward(self, columns):
            return self.head(self.mix(self.embed(columns)).mean(1))

    columns = torch.randint(0, 3, (16, 5), generator=torch.Generator().manual_seed(0)) + 3 * torch.arange(5)
    report = judge(Target(Columns(), halves(columns, columns[:, 0] % 2), nn.CrossEntropyLoss()))
    assert not loud(report)


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_small_batches_are_enough(judge, rows) -> None:
    x = torch.randn(12, 8)
    batches = list(zip(x.split(rows), (x[:, 0] > 0).long().split(rows), strict=True))
    report = judge(Target(mlp(), batches, nn.CrossEntropyLoss()))
    assert not loud(report)
    assert report["batch-independence"].status == ("skip" if rows == 1 else "pass")


def test_a_step_that_calls_parts_of_the_model_is_skipped(judge) -> None:
    model = nn.ModuleDict({"body": mlp()})
    target = Target(model, blobs(), training_step=lambda m, b: F.cross_entropy(m["body"](b[0]), b[1]))
    report = judge(target)
    assert {result.status for result in report.results} == {"skip"}


def test_packed_positions_of_one_row_are_judged(judge) -> None:
    """Padding-free batches have one row with all documents."""

    class Net(nn.Module):
        def __init__(self, isolated: bool) -> None:
            super().__init__()
            self.embed, self.mix, self.head = nn.Embedding(20, 8), nn.Linear(8, 24), nn.Linear(8, 20)
            self.isolated = isolated

        def forward(self, ids, position_ids):
            h = self.embed(ids)
            q, k, v = self.mix(h).chunk(3, -1)
            mask = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril()[None]
            if self.isolated:
                number = (position_ids == 0).cumsum(1)
                mask = mask & (number[:, :, None] == number[:, None])
            return self.head(h + F.scaled_dot_product_attention(q, k, v, attn_mask=mask))

    def target(isolated: bool) -> Target:
        ids, places = words(4, 12), torch.cat([torch.arange(5), torch.arange(7)])[None]

        def step(model, batch):
            scores = model(batch, places)[:, :-1]
            return F.cross_entropy(scores.flatten(0, 1), batch[:, 1:].flatten())

        return Target(Net(isolated), list(ids.split(1)), training_step=step)

    assert judge(target(True))["packing-isolation"].status == "pass"
    report = judge(target(False))
    assert report["packing-isolation"].status == "fail", said(report, "packing-isolation")
