"""Programs that can't learn."""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from debugkit import Target
from debugkit.testing import blobs, mlp

from . import pair

DEEPCHECKER = "TheDeepChecker, https://arxiv.org/abs/2204.00694"


def regression(sign: float = 1.0) -> DataLoader:
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(x, sign * x.abs().sum(1, keepdim=True)), batch_size=16, shuffle=True)


@pair("overfit-samples", source="https://stackoverflow.com/q/48251943")
def relu_output_for_negative_targets(broken: bool) -> Target:
    model = nn.Sequential(mlp(classes=1), nn.ReLU()) if broken else mlp(classes=1)
    return Target(model, regression(sign=-1.0), nn.MSELoss())


@pair("overfit-samples", source=DEEPCHECKER)
def sigmoid_output_for_large_targets(broken: bool) -> Target:
    model = nn.Sequential(mlp(classes=1), nn.Sigmoid()) if broken else mlp(classes=1)
    return Target(model, regression(), nn.MSELoss())


@pair(
    "overfit-samples",
    source="https://discuss.pytorch.org/t/target-size-that-is-different-to-the-input-size/64305",
)
def column_against_row(broken: bool) -> Target:
    def loss(p, y):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return F.mse_loss(p, y[:, 0] if broken else y)

    return Target(mlp(classes=1), regression(), loss)


@pair("overfit-samples", source=DEEPCHECKER)
def flipped_sign(broken: bool) -> Target:
    sign = -1 if broken else 1
    return Target(mlp(), blobs(), lambda logits, y: sign * F.cross_entropy(logits, y))


@pair("overfit-samples", source=DEEPCHECKER)
def input_overwritten_in_forward(broken: bool) -> Target:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp()

        def forward(self, x):
            return self.body(torch.zeros_like(x) if broken else x)

    return Target(Net(), blobs(), nn.CrossEntropyLoss())


@pair("overfit-samples", source="Humbatova et al. 2020, https://arxiv.org/abs/1910.11015")
def mean_over_the_wrong_axis(broken: bool) -> Target:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp(features=8, classes=16)
            self.head = nn.Linear(16, 2)

        def forward(self, x):
            h = self.body(x)
            return self.head(h.mean(0, keepdim=True).expand_as(h) if broken else h)

    return Target(Net(), blobs(), nn.CrossEntropyLoss())


@pair("overfit-samples", level="warn", source=DEEPCHECKER)
def learning_rate_far_too_small(broken: bool) -> Target:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-8 if broken else 1e-2)
    return Target(model, blobs(), nn.CrossEntropyLoss(), optimizer=optimizer)


@pair("overfit-samples", level="warn", source=DEEPCHECKER)
def learning_rate_far_too_large(broken: bool) -> Target:
    model = nn.Sequential(mlp(classes=16), nn.ReLU(), nn.Linear(16, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e4 if broken else 1e-2)
    return Target(model, blobs(classes=4), nn.CrossEntropyLoss(), optimizer=optimizer)


@pair("overfit-samples", level="warn", source="https://discuss.pytorch.org/t/84911")
def optimizer_built_before_the_head_was_replaced(broken: bool) -> Target:
    model = mlp()
    parameters = list(model.parameters())
    model[0], model[2] = nn.Linear(8, 32), nn.Linear(32, 2)
    held = [*parameters[:2], *model[2].parameters()] if broken else model.parameters()
    optimizer = torch.optim.SGD(held, lr=1e-7 if broken else 1e-2)
    return Target(model, blobs(), nn.CrossEntropyLoss(), optimizer=optimizer)


@pair("overfit-samples", source=DEEPCHECKER)
def a_map_that_ignores_the_image(broken: bool) -> Target:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 1))

        def forward(self, x):
            return self.body(x.mean((0, 2, 3), keepdim=True).expand_as(x) if broken else x)

    x = torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    loader = DataLoader(TensorDataset(x, (x > 1).float()), batch_size=16, shuffle=True)
    model = Net()
    return Target(model, loader, nn.BCEWithLogitsLoss(), optimizer=torch.optim.Adam(model.parameters(), 1e-2))


@pair("overfit-samples", source=DEEPCHECKER, where="its minus is missing")
def log_likelihood_without_its_minus(broken: bool) -> Target:
    def loss(logits, y):
        likelihood = logits.log_softmax(-1).gather(1, y[:, None]).mean()
        return likelihood if broken else -likelihood

    return Target(mlp(), blobs(), loss)


@pair("overfit-samples", source=DEEPCHECKER, where="training.py")
def the_scored_loss_is_the_place(broken: bool) -> Target:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.aux = mlp(), nn.Linear(8, 1)

        def forward(self, x):
            return self.body(x * 0 if broken else x), F.mse_loss(self.aux(x), x[:, :1])

    return Target(Net(), blobs(), lambda o, y: F.cross_entropy(o[0], y) + 0.01 * o[1])


@pair(
    "overfit-samples",
    level="warn",
    source="https://discuss.pytorch.org/t/84911",
    where="none of the model's 2 trainable tensors",
)
def optimizer_that_trains_nothing(broken: bool) -> Target:
    model = mlp()
    model[0].requires_grad_(False)
    before = list(model.parameters())
    model[2] = nn.Linear(32, 2)
    optimizer = torch.optim.Adam(before if broken else model.parameters(), 1e-2)
    return Target(model, blobs(), nn.CrossEntropyLoss(), optimizer=optimizer)


@pair("overfit-samples", level="warn", source=DEEPCHECKER, where="weight_decay=0")
def weight_decay_that_wins(broken: bool) -> Target:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, weight_decay=5.0 if broken else 1e-4)
    return Target(model, blobs(), nn.CrossEntropyLoss(), optimizer=optimizer)


@pair("overfit-samples", level="warn", source=DEEPCHECKER, where="maximize=False")
def optimizer_that_climbs(broken: bool) -> Target:
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, maximize=broken)
    return Target(model, blobs(), nn.CrossEntropyLoss(), optimizer=optimizer)


@pair("overfit-samples", level="warn", source=DEEPCHECKER, where="a hundredth of the rate")
def adam_far_too_fast(broken: bool) -> Target:
    model = nn.Sequential(mlp(classes=32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))
    optimizer = torch.optim.Adam(model.parameters(), lr=5.0 if broken else 2e-3)
    return Target(model, blobs(classes=4), nn.CrossEntropyLoss(), optimizer=optimizer)
