"""Lightning: what the callback and the target measure is what ``fit`` trains, and ``fit`` itself is as without."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import debugkit
from debugkit import ChecklistFailed, Target, UsageError

pytest.importorskip("lightning")
pytestmark = [
    pytest.mark.filterwarnings("ignore::lightning.pytorch.utilities.rank_zero.LightningDeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*(bottleneck|log_every_n_steps|LeafSpec|isinstance).*"),
]

import lightning.pytorch as pl  # noqa: E402

from debugkit.integrations.lightning import DebugkitCallback  # noqa: E402

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


def loaders() -> tuple[Any, Any]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(256, 6, generator=generator)
    y = (x[:, 0] > 0).long()
    train, val = TensorDataset(x[:192], y[:192]), TensorDataset(x[192:], y[192:])
    return DataLoader(train, 16, shuffle=True), DataLoader(val, 16)


class Net(pl.LightningModule):
    """Logs in both ways, asks its trainer, and counts its steps in an attribute."""

    def __init__(self, mistake: str = "") -> None:
        super().__init__()
        self.mistake = mistake
        self.net = nn.Sequential(
            nn.Linear(6, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 2)
        )
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        if self.mistake == "softmax":
            return F.cross_entropy(self(x).softmax(-1), y)
        if self.mistake == "crash" and self.trainer.global_step >= 5:
            raise RuntimeError("no more data")
        loss = F.cross_entropy(self(x), y)
        self.log("loss", loss, on_epoch=True)
        self.log("step", float(self.trainer.global_step))
        if self.logger is not None:
            self.logger.experiment.add_scalar("seen", loss.item())
        self.calls += 1
        return {"loss": loss}

    def on_after_backward(self) -> None:
        if self.mistake == "cleared":
            self.zero_grad()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_loss", F.cross_entropy(self(x), y))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 48)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def trainer_with(*callbacks: Any, **changes: Any) -> Any:
    quiet = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return pl.Trainer(callbacks=list(callbacks), **{**quiet, "max_epochs": 4, **changes})


def fit(*callbacks: Any, mistake: str = "", **changes: Any) -> tuple[Any, Any]:
    torch.manual_seed(0)
    module = Net(mistake)
    trainer = trainer_with(*callbacks, **changes)
    trainer.fit(module, *loaders())
    return module, trainer


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(
    "changes",
    [{}, {"accumulate_grad_batches": 2, "precision": "bf16-mixed", "gradient_clip_val": 1.0}],
    ids=["plain", "accumulated"],
)
def test_a_healthy_fit_is_quiet_and_the_same(
    changes: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    callback = DebugkitCallback(stop_on_fail=True, config={})
    (module, trainer), (alone, before) = fit(callback, **changes), fit(**changes)
    assert same(module, alone)
    assert module.calls == alone.calls == 48
    assert trainer.logged_metrics == before.logged_metrics
    report, error = callback.report, capsys.readouterr().err
    assert report is not None
    assert report.status == "pass"
    assert {report[check].status for check in ("loss-connected", "zero-grad")} == {"pass"}
    assert callback.watch is not None
    assert callback.watch.record.steps == 48 // changes.get("accumulate_grad_batches", 1)
    assert error.count("loss-connected") == error.count("zero-grad") == 1


def test_the_gate_stops_before_the_first_step() -> None:
    callback = DebugkitCallback(config={})
    module = Net("softmax")
    before = copy.deepcopy(module)
    with pytest.raises(ChecklistFailed, match="logits-vs-probs"):
        trainer_with(callback).fit(module, *loaders())
    assert same(module, before)
    assert callback.report is not None
    assert callback.watch is None


def test_without_the_gate_a_failure_of_the_loop_ends_the_fit() -> None:
    callback = DebugkitCallback(gate=None, stop_on_fail=True, config={})
    _, trainer = fit(callback, mistake="cleared")
    assert trainer.global_step == 3
    assert callback.report is not None
    assert callback.report["zero-grad"].status == "fail"


def test_an_error_in_the_fit_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    callback = DebugkitCallback(gate="report", config={})
    with pytest.raises(RuntimeError, match="no more data"):
        fit(callback, mistake="crash")
    assert "the loop ended after 5 optimizer steps with RuntimeError: no more data" in capsys.readouterr().err
    assert torch.nn.Module.__call__ is vars(torch.nn.Module)["_wrapped_call_impl"]


def test_loggers_hear_only_of_training(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from lightning.pytorch.loggers import TensorBoardLogger

    logger = TensorBoardLogger(str(tmp_path))
    heard: list[str] = []
    logger.experiment.add_scalar = lambda tag, *_, **__: heard.append(tag)  # type: ignore[method-assign]
    fit(DebugkitCallback(config={}), logger=logger)
    assert heard.count("seen") == 48


class Adversaries(pl.LightningModule):
    """Optimizes by hand, two parts in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator, self.critic = (
            nn.Linear(4, 6),
            nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 1)),
        )

    def training_step(self, batch: Any, batch_idx: int) -> None:
        x, _ = batch
        first, second = self.optimizers()  # type: ignore[attr-defined]
        fake = self.generator(torch.randn(len(x), 4))
        ones, zeros = torch.ones(len(x), 1), torch.zeros(len(x), 1)
        score = F.binary_cross_entropy_with_logits
        self.toggle_optimizer(first)
        first.zero_grad()
        self.manual_backward(score(self.critic(fake), ones))
        first.step()
        self.untoggle_optimizer(first)
        self.toggle_optimizer(second)
        second.zero_grad()
        self.manual_backward(score(self.critic(x), ones) + score(self.critic(fake.detach()), zeros))
        second.step()
        self.untoggle_optimizer(second)

    def configure_optimizers(self) -> Any:
        parts = (self.generator, self.critic)
        return [torch.optim.Adam(part.parameters(), lr=1e-3) for part in parts], []


def test_manual_optimization_is_watched() -> None:
    modules = []
    callback = DebugkitCallback(config={})
    for callbacks in ([callback], []):
        torch.manual_seed(0)
        modules.append(Adversaries())
        trainer_with(*callbacks, max_epochs=2).fit(modules[-1], loaders()[0])
    assert same(*modules)
    assert callback.report is not None
    assert callback.report.status == "pass"
    assert callback.watch is not None
    assert [log.steps for log in callback.watch.record.optimizers] == [24, 24]


class Data(pl.LightningDataModule):
    def setup(self, stage: str) -> None:
        self.train, self.val = loaders()

    def train_dataloader(self) -> Any:
        return self.train

    def val_dataloader(self) -> Any:
        return [self.val]


class Alone(Net):
    """Needs no trainer, and brings its loader."""

    def training_step(self, batch: Any) -> Any:  # type: ignore[override]
        x, y = batch
        self.log("loss", 0.0)
        return F.cross_entropy(self(x), y)

    def train_dataloader(self) -> Any:
        return loaders()[0]

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 10)]


def test_a_target_before_the_fit() -> None:
    torch.manual_seed(0)
    module, state = Alone(), torch.get_rng_state()
    target = Target.from_lightning(module, datamodule=Data())
    assert torch.equal(torch.get_rng_state(), state)
    assert target.train_loader is not None
    assert target.eval_loader is not None
    assert isinstance(target.scheduler, torch.optim.lr_scheduler.StepLR)
    assert debugkit.run(target, config={"max-cost": "backward"}).status == "pass"
    own = Target.from_lightning(module)
    assert own.train_loader is not None
    assert own.eval_loader is None


def test_what_the_trainer_plans_is_known() -> None:
    trainer = trainer_with(max_steps=70, accumulate_grad_batches=3, precision="bf16-mixed")
    target = Target.from_lightning(Net(), *loaders(), trainer=trainer)
    assert (target.training_steps, target.accumulation_steps, target.precision) == (70, 3, "bf16")


def test_several_loaders_or_manual_optimization_leave_the_model_alone() -> None:
    train, _ = loaders()
    assert Target.from_lightning(Net(), {"a": train, "b": train}).train_loader is None
    target = Target.from_lightning(Adversaries(), train)
    assert target.train_loader is target.training_step is target.optimizer is None
    assert debugkit.run(target, config={"max-cost": "backward"}).exit_code("fail") == 0


def test_what_is_wrong_is_said() -> None:
    with pytest.raises(UsageError, match="expected a `LightningModule`, not a `Linear`"):
        Target.from_lightning(nn.Linear(2, 2))
    with pytest.raises(UsageError, match='it must be "fail", "report" or None'):
        DebugkitCallback(gate="warn")  # type: ignore[arg-type]

    class Planned(Net):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=1 / self.trainer.estimated_stepping_batches)

    with pytest.raises(
        UsageError, match=r"`Planned.configure_optimizers` failed before `fit`.*DebugkitCallback"
    ):
        Target.from_lightning(Planned(), *loaders())


def test_a_watch_from_outside_judges_the_first_iteration_of_a_fit() -> None:
    torch.manual_seed(0)
    module = Net()
    with debugkit.watch(module, config={}) as watch:
        trainer_with(max_epochs=1).fit(module, *loaders())
    torch.manual_seed(0)
    alone = Net()
    trainer_with(max_epochs=1).fit(alone, *loaders())
    assert same(module, alone)
    assert module.calls == alone.calls
    assert watch.report["loss-connected"].status == "pass"
    assert watch.report["zero-grad"].status == "pass"
