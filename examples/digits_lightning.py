"""The network of ``digits.py``, trained by Lightning.

    python examples/digits_lightning.py                # trains for a few seconds
    python examples/digits_lightning.py --debugkit     # the checklist first, the loop under watch; the same weights
    debugkit watch examples/digits_lightning.py        # the same from outside

``pip install debugkit[examples,lightning]``.
"""

from __future__ import annotations

import argparse
from typing import Any

import lightning
import torch
from digits import EPOCHS, SEED, Network, accuracy, optimizer_for, splits, weights_hash
from torch import nn
from torch.utils.data import DataLoader


class Digits(lightning.LightningModule):
    """The network, its loss, and its optimizer."""

    def __init__(self) -> None:
        super().__init__()
        self.network = Network()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.network(images)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        images, labels = batch
        loss = nn.functional.cross_entropy(self(images), labels)
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        images, labels = batch
        self.log("accuracy", accuracy(self(images), labels))

    def configure_optimizers(self) -> Any:
        optimizer = optimizer_for(self)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Train a small network on handwritten digits with Lightning."
    )
    parser.add_argument("--debugkit", action="store_true", help="judge and watch the run by the callback")
    options = parser.parse_args()
    callbacks: list[Any] = []
    if options.debugkit:
        from debugkit.integrations.lightning import DebugkitCallback

        callbacks.append(DebugkitCallback(stop_on_fail=True))
    lightning.seed_everything(SEED)
    train, test = splits()
    module = Digits()
    trainer = lightning.Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    trainer.fit(module, DataLoader(train, batch_size=32, shuffle=True), DataLoader(test, batch_size=256))
    print(f"test accuracy {trainer.callback_metrics['accuracy']:.3f}   weights {weights_hash(module)}")


if __name__ == "__main__":
    main()
