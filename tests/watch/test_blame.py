"""What is said of the cause of a loss that is not finite, late in a loop, where few steps are looked at closely."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn.functional import cross_entropy

from debugkit.testing import blobs
from debugkit.watch.session import Watch

LATE = 45


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 16))
        self.head = torch.nn.Linear(16, 2)
        self.between: Callable[[torch.Tensor], torch.Tensor] = lambda hidden: hidden

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.between(self.encoder(x)))
        return logits


def train(mistake: str, optimizer: str = "Adam") -> Watch:
    """A loop in which something breaks after 45 steps, under watch."""
    net = Net()
    stepper: torch.optim.Optimizer = getattr(torch.optim, optimizer)(net.parameters(), lr=1e-3)
    watch = Watch(config={}, select="loss-trend")
    try:
        with watch:
            for index, (x, y) in enumerate([*blobs()] * 20):
                if index == LATE:
                    if mistake == "batch":
                        x = x.clone().fill_(torch.nan)
                    elif mistake == "log":
                        net.between = lambda hidden: (hidden * 0 - 1).log()
                    elif mistake == "root":
                        net.between = lambda hidden: hidden + (hidden.relu() * 0).sqrt()
                    elif mistake == "mask":
                        net.between = lambda hidden: hidden.masked_fill(hidden > 9, -torch.inf)
                        y = torch.full_like(y, -100)
                with torch.autocast("cpu", torch.float16, enabled=mistake == "half"):
                    logits = net(x * 1e6 if mistake == "half" and index == LATE else x)
                loss = cross_entropy(logits.float(), y)
                if mistake in ("log", "batch") and optimizer == "SGD" and not torch.isfinite(loss):
                    raise SystemExit("the loss is not finite")
                stepper.zero_grad()
                loss.backward()
                stepper.step()
    except SystemExit:
        pass
    return watch


@pytest.mark.parametrize(
    ("mistake", "where", "said"),
    [
        (
            "batch",
            None,
            f"after {LATE} steps): the model was given a batch that has values that are not finite",
        ),
        ("log", "Net", "`Net`, in its own code before `head`, gave the first values that are not"),
        (
            "root",
            None,
            f"update {LATE + 1} left 4 of 6 parameters not finite (`encoder.0.weight` to `encoder.2.bias`)",
        ),
        ("mask", None, "weights and outputs of the model were finite, so the loss itself broke"),
        ("half", "encoder.0", "`encoder.0` gave the first values that are not, from values up to"),
    ],
)
def test_the_cause_is_named(mistake: str, where: str | None, said: str) -> None:
    watch = train(mistake)
    finding = watch.report["loss-trend"].findings[0]
    assert watch.recorder.fault is None
    assert said in finding.message
    assert finding.where == where


def test_gradients_that_broke_an_update_are_told_where_the_optimizer_remembers_them() -> None:
    finding = train("root").report["loss-trend"].findings[0]
    assert "by gradients that were not finite" in finding.message
    assert "`encoder.2.bias`" in (finding.hint or "")
    assert "by gradients" not in train("root", "SGD").report["loss-trend"].findings[0].message


@pytest.mark.parametrize(
    ("mistake", "said"), [("log", "before `head`"), ("batch", "a batch that has values")]
)
def test_a_program_that_ends_itself_before_the_backward(mistake: str, said: str) -> None:
    result = train(mistake, "SGD").report["loss-trend"]
    assert result.status == "fail"
    assert f"the loop ended itself after {LATE} steps, before a backward" in result.findings[0].message
    assert said in result.findings[0].message


def test_an_end_with_sound_values_is_no_finding() -> None:
    net = Net()
    watch = Watch(config={}, select="loss-trend")
    with watch:
        net(torch.randn(4, 8)).mean().backward()
        net(torch.randn(4, 8))
        watch.close(ValueError("stop"))
    assert watch.report["loss-trend"].status == "pass"


def test_what_lies_between_two_models() -> None:
    one, two = torch.nn.Linear(4, 4), torch.nn.Linear(4, 1)
    with Watch(config={}, select="loss-trend") as watch:
        two((one(torch.ones(2, 4)) * 0).log().sub(torch.inf)).mean().backward()
    message = watch.report["loss-trend"].findings[0].message
    assert "`Linear` was given values that are not" in message
