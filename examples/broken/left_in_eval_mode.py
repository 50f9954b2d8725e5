"""Measures the untrained network first, and trains on in the eval mode that this leaves."""

from __future__ import annotations

import sys
from pathlib import Path

import debugkit

sys.path.insert(0, str(Path(__file__).parents[1]))
import digits


def target() -> debugkit.Target:
    run = digits.target()
    digits.evaluate(run)
    return run


def train(run: debugkit.Target) -> None:
    for _ in range(digits.EPOCHS):
        for images, labels in run.train_loader:
            loss = run.loss_fn(run.model(images), labels)
            run.optimizer.zero_grad()
            loss.backward()
            run.optimizer.step()
            run.scheduler.step()
        print(f"loss {loss.item():.4f}   test accuracy {digits.evaluate(run):.3f}")


if __name__ == "__main__":
    digits.main(target, train)
