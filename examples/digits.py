"""A small convolutional network learns scikit-learn's 1,797 handwritten digits, in a plain loop.

python examples/digits.py              # trains for a few seconds
python examples/digits.py --gate       # the checklist first; the weights come out the same, bit for bit
debugkit check examples/digits.py      # the checklist only
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import debugkit

SEED = 0
EPOCHS = 5


class Network(nn.Module):
    """Two convolutions and two linear layers; ``[batch, 1, 8, 8]`` in, logits ``[batch, 10]`` out."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 32, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Conv2d(32, 64, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
        )
        self.classifier = nn.Sequential(
            nn.Linear(64 * 4 * 4, 128),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Linear(128, 10),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(images))


def splits() -> tuple[TensorDataset, TensorDataset]:
    """The training and the test split: images in 0..1 and their labels."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    images = torch.tensor(images / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)
    labels = torch.tensor(labels, dtype=torch.long)
    train, test = train_test_split(range(len(labels)), test_size=0.2, stratify=labels, random_state=SEED)
    return TensorDataset(images[train], labels[train]), TensorDataset(images[test], labels[test])


def optimizer_for(model: nn.Module) -> torch.optim.Optimizer:
    """AdamW that decays matrices and kernels, and leaves biases and norms alone."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.01},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=2e-3)


def accuracy(logits: torch.Tensor, labels: torch.Tensor) -> float:
    return (logits.argmax(dim=-1) == labels).float().mean().item()


def target(
    network: Callable[[], nn.Module] = Network, loss_fn: Callable[..., torch.Tensor] | None = None
) -> debugkit.Target:
    """Everything that is needed to train, as debugkit sees it."""
    torch.manual_seed(SEED)
    train, test = splits()
    order = torch.Generator().manual_seed(SEED)
    train_loader = DataLoader(train, batch_size=32, shuffle=True, generator=order)
    model = network()
    optimizer = optimizer_for(model)
    steps = EPOCHS * len(train_loader)
    return debugkit.Target(
        model,
        train_loader,
        loss_fn=loss_fn or nn.CrossEntropyLoss(),
        optimizer=optimizer,
        scheduler=torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps),
        eval_loader=DataLoader(test, batch_size=256),
        metric=accuracy,
        training_steps=steps,
        name="digits",
    )


def train(run: debugkit.Target) -> None:
    """One optimizer step per batch until the planned steps are done."""
    step = 0
    while step < run.training_steps:
        run.model.train()
        for images, labels in run.train_loader:
            loss = run.loss_fn(run.model(images), labels)
            run.optimizer.zero_grad()
            loss.backward()
            run.optimizer.step()
            run.scheduler.step()
            step += 1
            if step == run.training_steps:
                break
        print(f"step {step:4d}   loss {loss.item():.4f}   test accuracy {evaluate(run):.3f}")


@torch.no_grad()
def evaluate(run: debugkit.Target) -> float:
    """The metric over the whole test split."""
    run.model.eval()
    outputs, labels = zip(*((run.model(images), labels) for images, labels in run.eval_loader), strict=True)
    return run.metric(torch.cat(outputs), torch.cat(labels))


def weights_hash(model: nn.Module) -> str:
    """The same for two models whose parameters and buffers agree in every bit."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()[:16]


def main(
    make: Callable[[], debugkit.Target] = target, fit: Callable[[debugkit.Target], None] = train
) -> None:
    parser = argparse.ArgumentParser(description="Train a small network on handwritten digits.")
    parser.add_argument("--gate", action="store_true", help="run the checklist first; stop if it fails")
    options = parser.parse_args()
    run = make()
    if options.gate:
        debugkit.gate(run)
    fit(run)
    print(f"weights {weights_hash(run.model)}")


if __name__ == "__main__":
    main()
