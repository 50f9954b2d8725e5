"""Healthy models of pictures, written by hand."""

from __future__ import annotations

import copy

import torch
from auto_media import pictures
from groups import adamw, sgd
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from debugkit import Target

SAMPLES, BATCH, CLASSES, SIDE = 192, 16, 3, 16


def loader(
    *fields: torch.Tensor, batch_size: int = BATCH
) -> torch.utils.data.DataLoader[tuple[torch.Tensor, ...]]:
    """Shuffled batches of the fields as tuples."""
    return torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(*fields),
        batch_size=batch_size,
        shuffle=True,
        generator=torch.Generator().manual_seed(0),
    )


def coloured(side: int = SIDE, samples: int = SAMPLES) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures ``[n, 3, side, side]`` about N(0, 1) with a square whose colour is the label ``[n]``."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.randperm(samples, generator=generator) % CLASSES
    return pictures(labels, 3, side, generator)[0], labels


def _target(
    model: nn.Module, *fields: torch.Tensor, optimizer: torch.optim.Optimizer | None = None
) -> Target:
    chosen = adamw(model) if optimizer is None else optimizer
    return Target(model, loader(*fields), nn.CrossEntropyLoss(), optimizer=chosen)


def cnn() -> Target:
    """Convolutions with BatchNorm."""
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, CLASSES),
    )
    return _target(model, *coloured())


class _Block(nn.Module):
    def __init__(self, width: int, norm: type[nn.Module] = nn.BatchNorm2d) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.first_norm = norm(width)
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.second_norm = norm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = functional.relu(self.first_norm(self.first(x)))
        return functional.relu(x + self.second_norm(self.second(inner)))


def resnet() -> Target:
    """A ResNet whose last BatchNorm of each block starts at gamma 0, trained with SGD."""
    blocks = [_Block(16) for _ in range(3)]
    for block in blocks:
        nn.init.zeros_(block.second_norm.weight)  # type: ignore[arg-type]
    stem = [nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, CLASSES)]
    model = nn.Sequential(*stem, *blocks, *head)
    return _target(model, *coloured(), optimizer=sgd(model))


def smoothed_labels() -> Target:
    """Label smoothing and GroupNorm."""
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1),
        nn.GroupNorm(4, 16),
        nn.SiLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.GroupNorm(4, 32),
        nn.SiLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.1),
        nn.Linear(32, CLASSES),
    )
    loss = nn.CrossEntropyLoss(label_smoothing=0.1)
    return Target(model, loader(*coloured()), loss, optimizer=adamw(model))


class _UNet(nn.Module):
    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.down = self._double(3, width)
        self.bottom = self._double(width, 2 * width)
        self.raise_ = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.up = self._double(2 * width, width)
        self.score = nn.Conv2d(width, CLASSES, 1)

    @staticmethod
    def _double(inside: int, outside: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(inside, outside, 3, padding=1, bias=False),
            nn.BatchNorm2d(outside),
            nn.ReLU(inplace=True),
            nn.Conv2d(outside, outside, 3, padding=1, bias=False),
            nn.BatchNorm2d(outside),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        fine = self.down(x)
        coarse = self.bottom(functional.max_pool2d(fine, 2))
        return self.score(self.up(torch.cat([fine, self.raise_(coarse)], 1)))  # type: ignore[no-any-return]


def unet() -> Target:
    """A U-Net that gives each pixel one of three classes, by its band's colour."""
    generator = torch.Generator().manual_seed(2)
    orders = torch.stack([torch.randperm(CLASSES, generator=generator) for _ in range(SAMPLES)])
    labels = orders[:, (torch.arange(SIDE) * CLASSES) // SIDE][:, None].expand(-1, SIDE, -1).contiguous()
    colours = 2 * torch.eye(3)[labels].permute(0, 3, 1, 2)
    images = colours + 0.7 * torch.randn(colours.shape, generator=generator)
    return _target(_UNet(), (images - images.mean()) / images.std(), labels)


class _ViT(nn.Module):
    def __init__(self, width: int = 32, patch: int = 4, checkpointed: bool = False) -> None:
        super().__init__()
        self.checkpointed = checkpointed
        self.patches = nn.Conv2d(3, width, patch, stride=patch)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.places = nn.Parameter(0.02 * torch.randn(1, (SIDE // patch) ** 2 + 1, width))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 64, 0.1, batch_first=True, norm_first=True) for _ in range(2)
        )
        self.norm = nn.LayerNorm(width)
        self.score = nn.Linear(width, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.places
        for layer in self.layers:
            x = checkpoint(layer, x, use_reentrant=False) if self.checkpointed else layer(x)
        return self.score(self.norm(x[:, 0]))  # type: ignore[no-any-return]


def vit() -> Target:
    """A vision transformer."""
    return _target(_ViT(), *coloured())


def checkpointed() -> Target:
    """A vision transformer with gradient checkpointing."""
    return _target(_ViT(checkpointed=True), *coloured())


def bfloat16() -> Target:
    """A vision transformer whose weights are bfloat16."""
    images, labels = coloured()
    return _target(_ViT().to(torch.bfloat16), images.to(torch.bfloat16), labels)


def autocast() -> Target:
    """A CNN that autocasts to bfloat16."""
    target = cnn()
    return Target(
        target.model, target.train_loader, target.loss_fn, optimizer=target.optimizer, precision="bf16"
    )


def spectral_norm() -> Target:
    """Spectral norm on the convolutions and weight norm on the linear layer."""
    parametrizations = nn.utils.parametrizations
    model = nn.Sequential(
        parametrizations.spectral_norm(nn.Conv2d(3, 16, 3, stride=2, padding=1)),
        nn.LeakyReLU(0.1),
        parametrizations.spectral_norm(nn.Conv2d(16, 32, 3, stride=2, padding=1)),
        nn.LeakyReLU(0.1),
        nn.Flatten(),
        parametrizations.weight_norm(nn.Linear(32 * 16, CLASSES)),
    )
    return _target(model, *coloured())


def linear_probe() -> Target:
    """A linear layer on a frozen backbone in evaluation mode."""
    torch.manual_seed(3)
    backbone = nn.Sequential(
        nn.Conv2d(3, 32, 3, stride=2, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
    )
    backbone.requires_grad_(False).eval()
    model = nn.Sequential(backbone, nn.Linear(128, CLASSES))
    return _target(model, *coloured())


def distillation() -> Target:
    """A small student that learns from a frozen teacher's scores, in a step of its own."""
    images, labels = coloured()
    student = cnn().model
    teacher = copy.deepcopy(student).requires_grad_(False).eval()

    def step(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        x, y = batch
        with torch.no_grad():
            wanted = teacher(x).softmax(-1)
        scores = model(x)
        soft = functional.kl_div(scores.log_softmax(-1), wanted, reduction="batchmean")
        return functional.cross_entropy(scores, y) + 0.5 * soft

    return Target(student, loader(images, labels), training_step=step, optimizer=adamw(student))


MODELS = {
    "cnn": cnn,
    "resnet": resnet,
    "smoothed-labels": smoothed_labels,
    "unet": unet,
    "vit": vit,
    "checkpointed": checkpointed,
    "bfloat16": bfloat16,
    "autocast": autocast,
    "spectral-norm": spectral_norm,
    "linear-probe": linear_probe,
    "distillation": distillation,
}
