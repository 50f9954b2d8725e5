"""Training proceeds bit for bit as if debugkit had not run."""

from __future__ import annotations

import functools
import hashlib
import random
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import debugkit
from debugkit import Target, check, sandbox
from debugkit.check import Check
from debugkit.evidence import Ledger
from debugkit.finding import Finding, note
from debugkit.probes.batches import Batches
from debugkit.probes.training_step import TrainingStep
from debugkit.registry import Registry, load
from debugkit.runner import Run
from debugkit.sandbox import Sandbox, own_steps
from debugkit.state.objects import Attributes, reachable
from debugkit.state.randomness import seed_everything


def fingerprint(target: Target) -> dict[str, Any]:
    """Everything that has to be as before: by value where it is data, by identity where it is an object."""
    modules = dict(target.model.named_modules())
    named = [*target.model.named_parameters(remove_duplicate=False), *target.model.named_buffers()]
    return {
        "tensors": {n: (id(t), t.data_ptr(), t._version, t.requires_grad, _digest(t)) for n, t in named},
        "gradients": {n: (id(t.grad), _digest(t.grad)) for n, t in named if t.is_leaf},
        "attributes": {n: _state(vars(m)) for n, m in modules.items()},
        "classes": {n: type(m) for n, m in modules.items()},
        "hooks": {
            n: [list(getattr(m, k)) for k in vars(m) if k.endswith("_hooks")] for n, m in modules.items()
        },
        "tensor hooks": {n: [*(t._backward_hooks or ())] for n, t in named},
        "optimizer": _state(target.optimizer.state_dict()) if target.optimizer else None,
        "scheduler": _state(target.scheduler.state_dict()) if target.scheduler else None,
        "loss": _state(vars(target.loss_fn)) if isinstance(target.loss_fn, nn.Module) else None,
        "data": _state(getattr(target.train_loader, "dataset", target.train_loader)),
        "random": (random.getstate(), _digest(np.random.get_state()[1]), _digest(torch.get_rng_state())),
        "seed": torch.initial_seed(),
        "step": getattr(target.training_step, "state", lambda: None)(),
        "switches": (
            torch.is_grad_enabled(),
            torch.is_autocast_enabled("cpu"),
            torch.get_autocast_dtype("cpu"),
            torch.are_deterministic_algorithms_enabled(),
            torch.get_default_dtype(),
            torch.is_anomaly_enabled(),
        ),
    }


def _digest(value: Any) -> str | None:
    if value is None:
        return None
    if isinstance(value, torch.Tensor):
        value = value.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
    return hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()[:16]


def _state(value: Any, depth: int = 4) -> Any:
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return _digest(value)
    if isinstance(value, torch.Generator):
        return _digest(value.get_state())
    if isinstance(value, np.random.Generator):
        return str(value.bit_generator.state)
    if isinstance(value, random.Random):
        return value.getstate()
    if isinstance(value, nn.Module) or not depth:
        return id(value)
    if isinstance(value, dict):
        return [(str(key), _state(item, depth - 1)) for key, item in value.items()]
    if isinstance(value, (list, tuple, set)):
        return [_state(item, depth - 1) for item in value]
    if hasattr(value, "__dict__") and not callable(value):
        return _state(vars(value), depth - 1)
    return value if isinstance(value, (int, float, str, bool, type(None))) else id(value)


def train(target: Target, steps: int = 5) -> list[str | None]:
    """Train for some steps and digest every weight, buffer and batch that was seen."""
    seen: list[str | None] = []
    optimizer = target.optimizer or torch.optim.SGD(target.model.parameters(), lr=0.1)
    batches = iter(target.train_loader)  # type: ignore[arg-type]
    for _ in range(steps):
        try:
            batch = next(batches)
        except StopIteration:
            break
        if isinstance(batch, dict):
            seen += [_digest(t) for t in batch.values()]
            loss = target.model(**batch).loss
        else:
            seen += [_digest(t) for t in batch]
            inputs, labels = batch
            step = target.training_step
            loss = step(target.model, batch) if step else target.loss_fn(target.model(inputs), labels)  # type: ignore[misc]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if target.scheduler is not None:
            target.scheduler.step()
    return [*seen, *(_digest(t) for t in target.model.state_dict().values()), str(torch.rand(()).item())]


def blobs(rows: int = 32, features: int = 8) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(rows) % 2
    return TensorDataset(torch.randn(rows, features, generator=generator) + labels[:, None], labels)


def target_of(model: nn.Module, loader: Any = None, **more: Any) -> Target:
    loader = loader if loader is not None else DataLoader(blobs(), batch_size=8, shuffle=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    return Target(model.train(), loader, **{"loss_fn": nn.CrossEntropyLoss(), "optimizer": optimizer, **more})


def net(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 16), *layers, nn.ReLU(), nn.Linear(16, 2))


def token_rows(count: int = 16, length: int = 8) -> list[dict[str, torch.Tensor]]:
    ids = torch.randint(5, 40, (count, length), generator=torch.Generator().manual_seed(0))
    labels = torch.arange(count) % 2
    ids[:, 1] = 3 + labels
    return [
        {"input_ids": i, "attention_mask": torch.ones_like(i), "labels": y}
        for i, y in zip(ids, labels, strict=True)
    ]


# --- what people train ---


def plain_mlp() -> Target:
    return target_of(net())


def dropout_mlp() -> Target:
    return target_of(net(nn.Dropout(0.5)))


def cnn_with_batch_norm() -> Target:
    images = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(16) % 2
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 2),
    )
    return target_of(
        model, DataLoader(TensorDataset(images + labels.view(-1, 1, 1, 1), labels), 8, shuffle=True)
    )


class Lstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(8, 8, 2, batch_first=True, dropout=0.3), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.rnn(x)[0][:, -1])


def lstm() -> Target:
    labels = torch.arange(16) % 2
    data = torch.randn(16, 5, 8, generator=torch.Generator().manual_seed(0)) + labels.view(-1, 1, 1)
    return target_of(Lstm(), DataLoader(TensorDataset(data, labels), 8, shuffle=True))


def transformer(kind: str, labels: str = "class") -> Target:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    config = AutoConfig.for_model(
        kind, vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    rows = token_rows()
    if labels == "next":
        rows = [{**row, "labels": row["input_ids"].clone()} for row in rows]
    auto = AutoModelForCausalLM if labels == "next" else AutoModelForSequenceClassification
    return target_of(auto.from_config(config), DataLoader(rows, 4, shuffle=True), loss_fn=None)  # type: ignore[arg-type]


def encoder() -> Target:
    return transformer("bert")


def decoder() -> Target:
    return transformer("llama", "next")


def tied_decoder() -> Target:
    return transformer("gpt2", "next")


def lora() -> Target:
    peft = pytest.importorskip("peft")
    base = transformer("bert")
    model = peft.get_peft_model(
        base.model, peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"])
    )
    return target_of(model, base.train_loader, loss_fn=None)


def compiled() -> Target:
    return target_of(torch.compile(net(nn.BatchNorm1d(16))))  # type: ignore[arg-type]


def mid_training() -> Target:
    model = net(nn.BatchNorm1d(16), nn.Dropout(0.2))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer)
    target = target_of(model, optimizer=optimizer, scheduler=scheduler)
    train(target, 3)
    inputs, labels = next(iter(target.train_loader))  # type: ignore[arg-type]
    F.cross_entropy(model(inputs), labels).backward()
    return target


class Bag(nn.Module):
    """Embeddings whose norm the forward pass itself limits, in place."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(50, 8, max_norm=1.0), nn.Linear(8, 2)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.embed(ids).mean(1))


def ids_loader() -> DataLoader[Any]:
    ids = torch.randint(5, 50, (32, 6), generator=torch.Generator().manual_seed(0))
    labels = torch.arange(32) % 2
    ids[:, 0] = labels
    return DataLoader(TensorDataset(ids, labels), 8, shuffle=True)


def embedding_with_max_norm() -> Target:
    return target_of(Bag(), ids_loader())


def weight_norm() -> Target:
    model = net()
    nn.utils.parametrizations.weight_norm(model[0])
    return target_of(model)


def legacy_weight_norm() -> Target:
    model = net()
    with pytest.warns(FutureWarning):
        nn.utils.weight_norm(model[0])
    return target_of(model)


def spectral_norm() -> Target:
    model = net()
    nn.utils.parametrizations.spectral_norm(model[0])
    return target_of(model)


def legacy_spectral_norm() -> Target:
    model = net()
    nn.utils.spectral_norm(model[0])
    return target_of(model)


class Bookkeeper(nn.Module):
    """Keeps state in plain Python attributes of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.body = net()
        self.steps, self.last = 0, None
        self.cache: dict[str, Any] = {"inner": {"rows": [1]}}
        self.memory = torch.zeros(8)
        self.pool = [torch.zeros(8), {"mean": torch.zeros(8)}]
        self.history = np.zeros(4)
        self.noise = torch.Generator().manual_seed(1)
        self.dice, self.draw = np.random.default_rng(0), random.Random(0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.steps += 1
        self.last = x
        self.fresh = x
        self.cache["batch"] = x
        self.cache["inner"]["rows"].append(self.steps)
        self.memory += x.detach().mean(0)
        self.pool[0].data.add_(1)  # type: ignore[union-attr]
        self.pool[1]["mean"].copy_(x[0])  # type: ignore[index]
        self.history[0] += 1
        noise = torch.rand(8, generator=self.noise) + self.dice.random() + self.draw.random()
        return self.body(x + noise.float() * 0.01)


def bookkeeper() -> Target:
    return target_of(Bookkeeper())


class Clamped(nn.Module):
    """Writes to its own parameters in three ways, and swaps one."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.a.weight.data.clamp_(-0.1, 0.1)
        self.b.weight.data = self.b.weight.data * 0.9
        with torch.no_grad():
            self.c.bias.add_(0.1)
        self.c.weight.requires_grad_(True)
        return self.c(torch.relu(self.b(torch.relu(self.a(x)))))


def clamped() -> Target:
    return target_of(Clamped())


class CarriesGraph(nn.Module):
    """A buffer that gets a graph: it is no leaf any more after a forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.body = net()
        self.register_buffer("mean", torch.zeros(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs = self.body(x)
        self.mean.detach_().mul_(0.9).add_(outputs.mean(0), alpha=0.1)
        return outputs


def carries_graph() -> Target:
    return target_of(CarriesGraph())


class FlipsSwitches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = net()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.use_deterministic_algorithms(True)
        torch.set_default_dtype(torch.float64)
        torch.set_autocast_dtype("cpu", torch.float16)
        self.body[0].eval()
        self.body[0].weight.requires_grad_(False)
        self.body.register_forward_hook(lambda m, a, o: None)
        return self.body(x)


def flips_switches() -> Target:
    return target_of(FlipsSwitches())


def transformers_problem_type() -> Target:
    target = transformer("bert")
    assert target.model.config.problem_type is None
    return target


def lazy() -> Target:
    model = nn.Sequential(nn.LazyLinear(16), nn.ReLU(), nn.Linear(16, 2))
    model(torch.zeros(2, 8))
    return target_of(model)


def partly_frozen_in_mixed_modes() -> Target:
    target = target_of(net(nn.BatchNorm1d(16)))
    target.model[1].eval()  # type: ignore[index]
    target.model[0].requires_grad_(False)  # type: ignore[index]
    return target


# --- the data ---


class Counting(Dataset[Any]):
    """Counts its accesses and draws from generators of its own."""

    def __init__(self) -> None:
        self.rows = blobs()
        self.reads, self.seen = 0, Counter[int]()
        self.counts, self.tensor_counts = np.zeros(32), torch.zeros(32)
        self.dice, self.draw = np.random.default_rng(3), random.Random(3)
        self.noise, self.cache = torch.Generator().manual_seed(3), {}

    def __len__(self) -> int:
        return 32

    def __getitem__(self, index: int) -> Any:
        self.reads += 1
        self.seen[index] += 1
        self.counts[index] += 1
        self.tensor_counts[index] += 1
        self.cache[index] = self.rows[index]
        x, y = self.rows[index]
        shift = self.dice.random() + self.draw.random() + random.random() + np.random.rand()
        return x + 0.01 * (float(shift) + torch.rand(8, generator=self.noise)), y


def counting_data() -> Target:
    return target_of(net(), DataLoader(Counting(), 8, shuffle=True))


class Endless(IterableDataset[Any]):
    def __init__(self) -> None:
        self.noise, self.yielded = torch.Generator().manual_seed(0), 0

    def __iter__(self) -> Iterator[Any]:
        while True:
            self.yielded += 1
            label = torch.randint(2, (), generator=self.noise)
            yield torch.randn(8, generator=self.noise) + label, label


def endless_data() -> Target:
    return target_of(net(), DataLoader(Endless(), 8))


def loader_with_generator() -> Target:
    generator = torch.Generator().manual_seed(5)
    return target_of(net(), DataLoader(blobs(), 8, shuffle=True, generator=generator))


class Resumable:
    """A loader that is its own iterator."""

    def __init__(self) -> None:
        self.rows, self.at = blobs(), 0

    def __iter__(self) -> Resumable:
        return self

    def __next__(self) -> Any:
        if self.at == 32:
            raise StopIteration
        self.at += 8
        return self.rows[self.at - 8 : self.at]


def resumable_loader() -> Target:
    return target_of(net(), Resumable())


def strided_columns() -> Target:
    """A table cut into columns, and buffers that are views: one column, one value expanded."""
    table = torch.randn(32, 10, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(nn.Linear(9, 16), nn.ReLU(), nn.Linear(16, 1))
    model.register_buffer("grid", torch.randn(6, 4).t()[:, :1])
    model.register_buffer("scale", torch.ones(1, 2).expand(8, 2))

    def step(model: nn.Module, batch: Any) -> torch.Tensor:
        x, y = batch
        model.grid.add_(0.1)
        model.scale[0].mul_(2)
        return F.mse_loss(model(x), y)

    rows = TensorDataset(table[:, :-1], table[:, -1:])
    return target_of(model, DataLoader(rows, 8), loss_fn=None, training_step=step)


def loader_of_views() -> Target:
    x, y = blobs().tensors
    return target_of(ScalesInputs(), [(x[i : i + 8], y[i : i + 8]) for i in range(0, 32, 8)])


class ScalesInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = net()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x.mul_(2))


def rows_that_the_collator_empties() -> Target:
    """Each row loses its label when it is read; only the first epoch works."""
    rows = [{"x": x, "label": int(y)} for x, y in blobs()]

    def collate(batch: list[dict[str, Any]]) -> Any:
        labels = [row.pop("label", 0) for row in batch]
        return torch.stack([row["x"] for row in batch]), torch.tensor(labels)

    return target_of(net(), DataLoader(rows, 8, shuffle=True, collate_fn=collate))  # type: ignore[arg-type]


# --- the user's own step ---


def step_with_books() -> Target:
    """A step with a closure, a teacher, an average of the weights, and a schedule that it drives itself."""
    model = net(nn.Dropout(0.1))
    teacher = net(nn.BatchNorm1d(16))
    average = {name: p.detach().clone() for name, p in model.named_parameters()}
    losses: list[float] = []
    count = 0
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)

    def step(model: nn.Module, batch: Any) -> torch.Tensor:
        nonlocal count
        count += 1
        x, y = batch
        outputs = model(x)
        loss = F.cross_entropy(outputs, y) + 0.1 * F.mse_loss(outputs, teacher(x).detach())
        losses.append(loss.item())
        for name, p in model.named_parameters():
            average[name].lerp_(p.detach(), 0.1)
        for group in optimizer.param_groups:
            group["lr"] *= 0.5
        batch.clear() if isinstance(batch, list) else None
        return loss

    step.state = lambda: (count, list(losses), _state(average), _digest(teacher[1].running_mean))  # type: ignore[attr-defined]
    return target_of(model, loss_fn=None, training_step=step, optimizer=optimizer, scheduler=scheduler)


TARGETS: list[Callable[[], Target]] = [
    plain_mlp,
    dropout_mlp,
    cnn_with_batch_norm,
    lstm,
    encoder,
    decoder,
    tied_decoder,
    lora,
    compiled,
    mid_training,
    embedding_with_max_norm,
    weight_norm,
    legacy_weight_norm,
    spectral_norm,
    legacy_spectral_norm,
    bookkeeper,
    clamped,
    carries_graph,
    flips_switches,
    transformers_problem_type,
    lazy,
    partly_frozen_in_mixed_modes,
    counting_data,
    endless_data,
    loader_with_generator,
    resumable_loader,
    loader_of_views,
    strided_columns,
    rows_that_the_collator_empties,
    step_with_books,
]


@pytest.fixture(autouse=True)
def _fixed_seed() -> Iterator[None]:
    seed_everything(7)
    yield
    seed_everything(0)
    torch.use_deterministic_algorithms(False)
    torch.set_default_dtype(torch.float32)
    torch.set_autocast_dtype("cpu", torch.bfloat16)


def run_all(target: Target, max_cost: str = "training") -> debugkit.Report:
    """The whole checklist, with short training probes."""
    registry = load()
    short = ["overfit-runs.max-steps=10", "overfit-runs.own-steps=5"]
    return Run(target, config={"max-cost": max_cost}, settings=short, registry=registry).execute()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", TARGETS, ids=lambda make: make.__name__)
def test_training_proceeds_bit_for_bit(make: Callable[[], Target]) -> None:
    expected = train(make())
    seed_everything(7)
    torch.set_default_dtype(torch.float32)
    target = make()
    before = fingerprint(target)
    report = run_all(target)
    assert _difference(before, fingerprint(target)) == []
    assert train(target) == expected
    assert report.counts["pass"] > 0
    assert [f"{r.check}: {r.reason}" for r in report.results if r.status == "error"] == []


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", TARGETS, ids=lambda make: make.__name__)
def test_large_models_are_copied_before_the_first_write(
    make: Callable[[], Target], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox, "COPIED_BYTES", 0)
    target = make()
    before = fingerprint(target)
    report = run_all(target, max_cost="backward")
    assert _difference(before, fingerprint(target)) == []
    assert report.counts["pass"] > 0
    assert [f"{r.check}: {r.reason}" for r in report.results if r.status == "error"] == []


# --- when something goes wrong on the way ---


@check
def crashes(step: TrainingStep) -> Iterator[Finding]:
    """Raises."""
    yield note("on the way")
    raise RuntimeError("boom")


@check
def reads_batches(batches: Batches) -> Iterator[Finding]:
    """Passes."""
    yield note(f"{batches.samples} samples")


def test_a_check_that_crashes_changes_nothing() -> None:
    target = mid_training()
    before = fingerprint(target)
    registry = Registry([Check(crashes, "test", "test"), Check(reads_batches, "test", "test")])
    report = Run(target, config={}, registry=registry).execute()
    assert report["crashes"].status == "error"
    assert report["reads-batches"].status == "pass"
    assert report.exit_code() == 2
    assert _difference(before, fingerprint(target)) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, RuntimeError])
def test_a_step_that_raises_half_way_changes_nothing(error: type[BaseException]) -> None:
    armed = False

    def step(model: nn.Module, batch: Any) -> torch.Tensor:
        loss = F.cross_entropy(model(batch[0]), batch[1])
        if armed:
            loss.backward()
            model[0].weight.data.zero_()  # type: ignore[index]
            model.eval()
            raise error
        return loss

    model = net(nn.BatchNorm1d(16))
    target = target_of(model, loss_fn=None, training_step=step)
    train(target, 2)
    before = fingerprint(target)
    armed = True
    if error is not KeyboardInterrupt:
        assert debugkit.run(target, select="logits-vs-probs")["logits-vs-probs"].status == "error"
    else:
        with pytest.raises(error):
            debugkit.run(target, select="logits-vs-probs")
    assert armed
    assert _difference(before, fingerprint(target)) == []


def test_ctrl_c_gives_the_partial_report() -> None:
    def step(model: nn.Module, batch: Any) -> torch.Tensor:
        raise KeyboardInterrupt

    target = target_of(net(), loss_fn=None, training_step=step)
    run = Run(target, config={}, registry=load())
    report = run.execute()
    assert report.interrupted
    assert report.exit_code() == 130
    assert report["label-balance"].status == "pass"
    assert report["logits-vs-probs"].status == "skip"


def test_an_interrupt_while_restoring_waits() -> None:
    import signal

    class Slow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.calls = net(), 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return self.body(x)

    target = target_of(Slow())
    before = fingerprint(target)

    def interrupted_while_restoring() -> None:
        with Sandbox(target) as box, box.probe():
            target.model(torch.zeros(2, 8))
            box._program._undo.insert(0, lambda: signal.raise_signal(signal.SIGINT))

    with pytest.raises(KeyboardInterrupt):
        interrupted_while_restoring()
    assert _difference(before, fingerprint(target)) == []


class Unreadable(dict[str, Any]):
    """A container that raises whenever it is looked at."""

    def __iter__(self) -> Iterator[str]:
        raise RuntimeError("not now")

    values = items = keys = __iter__  # type: ignore[assignment]


def test_what_cannot_be_recorded_is_a_notice_and_the_rest_is_put_back() -> None:
    target = mid_training()
    target.model.registry = Unreadable(a=1)
    before = _digest(target.model[0].weight)  # type: ignore[index]
    with Sandbox(target) as box, box.probe(), torch.no_grad():
        target.model[0].weight.zero_()  # type: ignore[index]
    assert [notice for notice in box.notices if "RuntimeError: not now" in notice] == box.notices != []
    assert _digest(target.model[0].weight) == before  # type: ignore[index]


def test_one_value_that_cannot_be_put_back_stops_no_other() -> None:
    def refuse() -> None:
        raise RuntimeError("no way back")

    target = mid_training()
    before = fingerprint(target)
    with Sandbox(target) as box:
        box._program._undo.insert(0, refuse)
        next(iter(box._tensors.values())).restore = refuse  # type: ignore[method-assign]
        for _ in range(2):
            with box.probe(), own_steps():
                train(Target(target.model, target.train_loader, target.loss_fn), 1)
    assert _difference(before, fingerprint(target)) == []
    assert len(box.notices) == 1
    assert "could not be put back (RuntimeError: no way back)" in box.notices[0]


class Wrapper:
    """Opens the loader inside it at the first batch, as accelerate does."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[Any]:
        yield from self.loader


@pytest.mark.parametrize("wrap", [lambda loader: loader, Wrapper])
def test_persistent_workers_stay_with_training(wrap: Callable[[Any], Any]) -> None:
    loader = DataLoader(blobs(), 8, num_workers=1, persistent_workers=True)
    list(loader)
    kept = loader._iterator
    debugkit.run(Target(net(), wrap(loader), nn.CrossEntropyLoss()), select="label-balance")
    assert loader._iterator is kept
    assert len(list(loader)) == 4


# --- hooks ---


def test_hooks_that_only_look_do_not_fire() -> None:
    fired: list[str] = []
    model = net()
    model.register_forward_pre_hook(lambda m, a: fired.append("pre"))
    model[0].register_forward_hook(lambda m, a, o: fired.append("forward"))
    model[2].register_full_backward_hook(lambda m, i, o: fired.append("backward"))
    model[0].weight.register_hook(lambda gradient: fired.append("tensor"))

    def note_down(module: nn.Module, args: Any, output: Any) -> None:
        fired.append("function")

    model[2].register_forward_hook(note_down)
    everywhere = nn.modules.module.register_module_forward_hook(note_down)
    try:
        run_all(target_of(model))
        assert fired == []
        model(torch.zeros(2, 8)).sum().backward()
    finally:
        everywhere.remove()
    assert {"pre", "forward", "backward", "tensor", "function"} == set(fired)


def test_hooks_that_compute_stay() -> None:
    model = net()
    model[0].register_forward_hook(lambda m, a, o: o * 0.0)

    def shrink(module: nn.Module, args: Any, output: torch.Tensor) -> None:
        output.mul_(0.5)

    def count(module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return output

    calls: list[int] = []
    model[2].register_forward_hook(shrink)
    model[2].register_forward_hook(count)
    target = target_of(model)
    expected = model(torch.ones(2, 8)).detach()
    calls.clear()
    with Sandbox(target) as box:
        with box.probe():
            assert torch.equal(model(torch.ones(2, 8)), expected)
            assert calls == [1]
        assert calls == []


def test_hooks_that_compute_a_gradient_stay() -> None:
    target = plain_mlp()
    weight, bias = target.model[0].weight, target.model[0].bias  # type: ignore[index]
    optimizer = torch.optim.SGD([bias], lr=0.1)
    books: dict[str, Any] = {}

    def apply(gradient: torch.Tensor) -> torch.Tensor:
        optimizer.step()
        return gradient

    weight.register_hook(lambda gradient: gradient * 0.0)
    weight.register_hook(lambda gradient: books.__setitem__("gradient", gradient))
    bias.register_hook(apply)
    with Sandbox(target) as box, box.probe():
        target.model(torch.ones(2, 8)).square().sum().backward()
        assert not weight.grad.any()
        assert bias.grad.any()
    assert books == {}
    assert len(weight._backward_hooks) == 2


def test_an_optimizer_in_the_backward_pass_does_not_step() -> None:
    model = net()
    optimizers = {p: torch.optim.SGD([p], lr=0.1) for p in model.parameters()}
    steps: list[int] = []

    def step(parameter: torch.Tensor) -> None:
        steps.append(1)
        optimizers[parameter].step()  # type: ignore[index]
        parameter.grad = None

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(step)
    target = Target(model, DataLoader(blobs(), 8), nn.CrossEntropyLoss())
    before = fingerprint(target)
    report = run_all(target)
    assert steps == []
    assert not report.counts["error"]
    assert _difference(before, fingerprint(target)) == []


# --- what a probe gives ---


def test_a_probe_starts_seeded_with_gradients_on_and_cleared() -> None:
    target = mid_training()
    assert all(p.grad is not None for p in target.model.parameters())
    with torch.no_grad(), Sandbox(target, seed=3) as box:
        draws = []
        for _ in range(2):
            with box.probe():
                assert torch.is_grad_enabled()
                assert all(p.grad is None for p in target.model.parameters())
                draws.append((random.random(), np.random.rand(), torch.rand(()).item()))
            assert not torch.is_grad_enabled()
        assert draws[0] == draws[1]
    assert all(p.grad is not None for p in target.model.parameters())


def test_a_training_probe_may_train() -> None:
    target = mid_training()
    before = fingerprint(target)
    with Sandbox(target) as box:
        box.protect(target.model.parameters())
        with box.probe(), own_steps():
            train(Target(target.model, target.train_loader, target.loss_fn), 3)
            assert _difference(before, fingerprint(target))
    assert _difference(before, fingerprint(target)) == []


@pytest.mark.parametrize("copied", [sandbox.COPIED_BYTES, 0])
def test_a_training_probe_that_forgets_to_protect_is_undone_as_well(
    copied: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox, "COPIED_BYTES", copied)
    target = plain_mlp()
    before = fingerprint(target)
    with Sandbox(target) as box, box.probe(), own_steps():
        train(Target(target.model, target.train_loader, target.loss_fn), 3)
    assert _difference(before, fingerprint(target)) == []


def test_tensors_of_every_kind_are_put_back() -> None:
    model = nn.Module()
    kinds = [torch.float64, torch.bfloat16, torch.int32, torch.bool, torch.complex64, torch.float8_e4m3fn]
    for i, kind in enumerate(kinds):
        model.register_buffer(f"buffer{i}", torch.ones(2, 3).to(kind))
    model.register_buffer("scalar", torch.tensor(1.0))
    model.register_buffer("nan", torch.tensor([float("nan"), -0.0]))
    model.register_buffer("turned", torch.ones(2, 3).t())
    model.register_buffer("sparse", torch.eye(3).to_sparse())
    model.register_buffer("empty", torch.zeros(0))
    model.absent = nn.Linear(2, 2, device="meta")
    with torch.inference_mode():
        model.register_buffer("inference", torch.ones(2))
    before = {
        name: (id(t), t.stride() if t.layout is torch.strided else 0) for name, t in model.named_buffers()
    }
    with Sandbox(Target(model)) as box, box.probe(), torch.inference_mode():
        for buffer in model.buffers():
            buffer.zero_()
    assert {
        n: (id(t), t.stride() if t.layout is torch.strided else 0) for n, t in model.named_buffers()
    } == before
    for i, kind in enumerate(kinds):
        assert _digest(getattr(model, f"buffer{i}")) == _digest(torch.ones(2, 3).to(kind)), kind
    assert float(model.scalar) == 1.0
    assert torch.equal(model.nan.view(torch.int32), torch.tensor([float("nan"), -0.0]).view(torch.int32))
    assert torch.equal(model.sparse.to_dense(), torch.eye(3))
    assert torch.equal(model.inference, torch.ones(2))


def test_a_graph_made_before_can_still_be_used() -> None:
    target = cnn_with_batch_norm()
    inputs, labels = next(iter(target.train_loader))  # type: ignore[arg-type]
    loss = F.cross_entropy(target.model(inputs), labels)
    debugkit.run(target, select="logits-vs-probs")
    loss.backward()


def test_a_probe_leaves_unused_accelerators_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    queued: list[Any] = []
    monkeypatch.setattr(torch.cuda, "_lazy_call", lambda call, **_: queued.append(call))
    seed_everything(1)
    assert queued == []


def test_a_matmul_precision_set_in_two_ways_is_no_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> str:
        raise RuntimeError("you have used mix of the legacy and new APIs")

    monkeypatch.setattr(torch, "get_float32_matmul_precision", refuse)
    assert debugkit.run(plain_mlp(), select="logits-vs-probs").status == "pass"


def test_an_open_file_is_rewound(tmp_path: Any) -> None:
    class Lines(IterableDataset[Any]):
        def __init__(self) -> None:
            path = tmp_path / "numbers.txt"
            path.write_text("\n".join(str(i) for i in range(64)))
            self.file = path.open()

        def __iter__(self) -> Iterator[Any]:
            while line := self.file.readline():
                yield torch.full((8,), float(line)), int(line) % 2

    data = Lines()
    target = target_of(net(), DataLoader(data, 8))
    report = debugkit.run(target, select="logits-vs-probs")
    assert report.notices == ()
    assert data.file.readline() == "0\n"
    data.file.close()


# --- plain objects ---


def test_attributes_are_put_back_by_identity() -> None:
    class Holder:
        pass

    holder: Any = Holder()
    holder.rows, holder.table, holder.names = [1, 2], {"a": [1]}, {"x"}
    rows, table = holder.rows, holder.table
    saved = Attributes(holder)
    holder.rows.append(3)
    holder.table = {}
    holder.names.add("y")
    holder.new = 1
    saved.restore()
    assert holder.rows is rows
    assert rows == [1, 2]
    assert holder.table is table
    assert holder.names == {"x"}
    assert not hasattr(holder, "new")


def test_library_objects_behind_a_function_are_left_alone() -> None:
    import logging

    logger, books = logging.getLogger("training"), {"steps": [0]}

    def step(model: nn.Module, batch: Any) -> Any:
        logger.info("step")
        books["steps"].append(1)
        return model(batch)

    found = {id(value) for value in reachable(functools.partial(step, batch=None))}
    assert id(books) in found
    assert id(books["steps"]) in found
    assert id(logger) not in found


def test_evidence_is_dropped_with_the_run() -> None:
    target = plain_mlp()
    with Sandbox(target) as box:
        Ledger({Target: target, Sandbox: box}).get(TrainingStep)
    assert not [name for name in vars(box) if name.endswith("tensors")]


def _difference(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """The parts that differ, in words short enough to read in a failure."""
    found = []
    for part, value in before.items():
        if value == after[part]:
            continue
        keys = [k for k in value if value[k] != after[part].get(k)] if isinstance(value, dict) else []
        found.append(f"{part}: {keys[:5]}" if keys else part)
    return found
