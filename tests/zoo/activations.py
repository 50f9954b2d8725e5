"""Dead and saturated units, values that grow, and layers that are one."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from debugkit import Target
from debugkit.testing import blobs

from . import pair
from .initial_weights import stripes

NEURALINT = "NeuraLint, https://arxiv.org/abs/2105.08095"
UMLAUT = "UMLAUT, https://doi.org/10.1145/3411764.3445538"
TRAINER = "AUTOTRAINER, https://doi.org/10.1109/ICSE43902.2021.00043"
DIAGNOSIS = "DeepDiagnosis, https://arxiv.org/abs/2112.03849"
DYING = "https://arxiv.org/abs/1903.06733"


def same(x: torch.Tensor) -> torch.Tensor:
    return x


@pair("activations", level="warn", source=UMLAUT, where="nothing non-linear")
def activations_forgotten(broken: bool) -> Target:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2, self.fc3 = nn.Linear(8, 64), nn.Linear(64, 64), nn.Linear(64, 2)
            self.drop = nn.Dropout(0.1)

        def forward(self, x):
            join = same if broken else F.relu
            return self.fc3(join(self.fc2(self.drop(join(self.fc1(x))))))

    return Target(Net(), blobs(), nn.CrossEntropyLoss())


@pair("activations", level="warn", source=NEURALINT, where="nothing non-linear")
def convolutions_without_activation(broken: bool) -> Target:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
            self.norm1, self.norm2 = nn.BatchNorm2d(8), nn.BatchNorm2d(16)
            self.head = nn.Linear(16 * 16, 2)

        def forward(self, x):
            join = same if broken else F.leaky_relu
            x = F.avg_pool2d(join(self.norm1(self.conv1(x))), 2)
            return self.head(join(self.norm2(self.conv2(x))).flatten(1))

    return Target(Net(), stripes(), nn.CrossEntropyLoss())


@pair("activations", level="warn", source=NEURALINT, where="nothing non-linear")
def activation_built_and_not_called(broken: bool) -> Target:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Linear(8, 24)
            self.decoder = nn.Linear(24, 8)
            self.act = nn.GELU()
            self.classify = nn.Linear(8, 2)

        def forward(self, x):
            h = self.encoder(x)
            if not broken:
                h = self.act(h)
            return self.classify(self.decoder(h) + x)

    return Target(Net(), blobs(), nn.CrossEntropyLoss())


@pair("activations", source=TRAINER, where="conv2.weight")
def convolution_with_a_dead_bias(broken: bool) -> Target:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
            self.head = nn.Linear(16, 2)
            if broken:
                nn.init.constant_(self.conv2.bias, -20.0)

        def forward(self, x):
            x = F.relu(self.conv2(F.relu(self.conv1(x))), inplace=True)
            return self.head(x.amax((2, 3)))

    return Target(Net(), stripes(), nn.CrossEntropyLoss())


@pair("activations", source=NEURALINT, where="relu")
def relu_behind_a_log_sigmoid(broken: bool) -> Target:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.head = nn.Linear(8, 32), nn.Linear(32, 2)

        def forward(self, x):
            h = self.gate(x)
            return self.head(torch.relu(F.logsigmoid(h) if broken else h))

    return Target(Net(), blobs(), nn.CrossEntropyLoss())


@pair("activations", level="warn", source=DYING, where="dead")
def bias_that_starts_far_below_zero(broken: bool) -> Target:
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
    for layer in model[::2]:
        nn.init.zeros_(layer.bias)
    if broken:
        nn.init.constant_(model[0].bias, -3.0)
    return Target(model, blobs(), nn.CrossEntropyLoss())


@pair("activations", level="warn", source=DIAGNOSIS, where="tanh")
def factor_of_a_hundred_before_tanh(broken: bool) -> Target:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.head = nn.Linear(8, 32), nn.Linear(32, 2)

        def forward(self, x):
            return self.head(torch.tanh((100.0 if broken else 1.0) * self.fc(x)))

    return Target(Net(), blobs(), nn.CrossEntropyLoss())


@pair(
    "activations",
    level="warn",
    source="Bachlechner et al. 2020, https://arxiv.org/abs/2003.04887",
    where="grow",
)
def residual_branches_that_are_never_scaled(broken: bool) -> Target:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Linear(8, 32), nn.Linear(32, 2)
            self.blocks = nn.ModuleList(nn.Linear(32, 32) for _ in range(10))
            self.norm = nn.LayerNorm(32)
            for block in self.blocks:
                nn.init.kaiming_normal_(block.weight)

        def forward(self, x):
            x = self.stem(x)
            for block in self.blocks:
                x = x + (3 * block(x).relu() if broken else 0.1 * block(x).relu())
            return self.head(self.norm(x))

    return Target(Net(), blobs(), nn.CrossEntropyLoss())
