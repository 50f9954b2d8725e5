"""Inputs and targets on the wrong scale, and images whose dimensions are in the wrong place."""

from __future__ import annotations

import tempfile
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from debugkit import Target
from debugkit.testing import mlp

from . import pair

KARPATHY = "https://karpathy.github.io/2019/04/25/recipe/"
RESCALED = "https://github.com/huggingface/transformers/issues/25688"
PERMUTE = "https://discuss.pytorch.org/t/for-beginners-do-not-use-view-or-reshape-to-swap-dimensions-of-tensors/75524"
SCALING = "http://yann.lecun.com/exdb/publis/pdf/lecun-98b.pdf"
FAULTS = "https://arxiv.org/abs/1910.11015"
TORCH = "https://docs.pytorch.org/docs/stable/generated/torch.nn."
LEAKAGE = "https://scikit-learn.org/stable/common_pitfalls.html"

MEAN = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
STD = torch.tensor([0.229, 0.224, 0.225])[:, None, None]


def loader(*columns: torch.Tensor, shuffle: bool = True) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*columns), batch_size=16, shuffle=shuffle)


def scenes(samples: int = 96, side: int = 16, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Smooth 8-bit pictures ``[samples, 3, side, side]`` uint8: bright on the left or on the right, warm colours."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(samples) % 2
    coarse = 90 + 40 * torch.randn(samples, 3, 5, 5, generator=generator)
    coarse[:, 0] += 40
    coarse[y == 0, :, :, :2] += 90
    coarse[y == 1, :, :, 3:] += 90
    smooth = F.interpolate(coarse, size=(side, side), mode="bilinear", align_corners=True)
    return smooth.clamp(0, 255).round().to(torch.uint8), y


def normalised(pixels: torch.Tensor) -> torch.Tensor:
    return (pixels.float() / 255 - MEAN) / STD


def cnn(channels: int = 3, classes: int = 2, seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(channels, 16, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
            nn.Linear(256, classes),
        )


def tiny_vit(side: int = 16) -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ViTForImageClassification(  # type: ignore[no-any-return]
            ViTConfig(
                image_size=side,
                patch_size=4,
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=64,
                num_labels=2,
            )
        )


class Rows(Dataset[dict[str, torch.Tensor]]):
    """A data set of dicts."""

    def __init__(self, **columns: torch.Tensor) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {name: values[index] for name, values in self.columns.items()}


@pair("input-scale", level="warn", source=RESCALED, where="pixel_values")
def processor_rescales_floats(broken: bool) -> Target:
    pixels, y = scenes()
    images = pixels.float() / 255
    factor = 1 / 255 if broken else 1.0
    rows = Rows(pixel_values=(images * factor - 0.5) / 0.5, labels=y)
    return Target(tiny_vit(), DataLoader(rows, batch_size=16, shuffle=True))


@pair("input-scale", source="https://github.com/pytorch/examples/issues/112", where="evaluation")
def eval_transform_without_normalize(broken: bool) -> Target:
    from transformers import Trainer, TrainingArguments

    (pixels, y), (held_out, y2) = scenes(), scenes(48, seed=1)
    arguments = TrainingArguments(
        tempfile.mkdtemp(), per_device_train_batch_size=16, use_cpu=True, report_to=[], num_train_epochs=3
    )
    evaluated = held_out.float() / 255 if broken else normalised(held_out)
    trainer = Trainer(
        tiny_vit(),
        arguments,
        train_dataset=Rows(pixel_values=normalised(pixels), labels=y),
        eval_dataset=Rows(pixel_values=evaluated, labels=y2),
    )
    return Target.from_trainer(trainer)


class DividesItself(nn.Module):
    """A network that takes pixels in 0..255."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.network(pixels.float() / 255)  # type: ignore[no-any-return]


@pair("input-scale", level="warn", source=FAULTS, where="network.0")
def dataset_and_model_divide_by_255(broken: bool) -> Target:
    pixels, y = scenes()
    x = pixels.float() / 255 if broken else pixels
    return Target(DividesItself(cnn()), loader(x, y), nn.CrossEntropyLoss())


@pair("input-scale", level="warn", source="https://stackoverflow.com/questions/55328966", where="raw pixels")
def frames_cast_and_not_scaled(broken: bool) -> Target:
    pixels, y = scenes()

    def step(model: nn.Module, batch: Any) -> torch.Tensor:
        frames, labels = batch
        frames = frames.float() if broken else frames.float() / 127.5 - 1
        return F.cross_entropy(model(frames), labels)

    return Target(cnn(), loader(pixels, y), training_step=step)


class LastState(nn.Module):
    """A recurrent network that reads its answer off the last state."""

    def __init__(self, features: int, outputs: int, hidden: int = 32, bare: bool = False) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.lstm = nn.LSTM(features, outputs if bare else hidden, batch_first=True)
            self.head = nn.Identity() if bare else nn.Linear(hidden, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(x)[0][:, -1])  # type: ignore[no-any-return]


@pair("input-scale", level="warn", source=SCALING, where="lstm")
def trading_volume_beside_returns(broken: bool) -> Target:
    generator = torch.Generator().manual_seed(0)
    windows = torch.randn(128, 20, 3, generator=generator)
    y = (windows[:, -1, 0] > 0).long()
    if broken:
        windows[:, :, 2] = 2_000_000 * (0.3 * windows[:, :, 2]).exp()
    return Target(LastState(3, 2), loader(windows, y), nn.CrossEntropyLoss())


def patients(samples: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Age, pulse, weight and temperature as they are written down; the class shows in age and pulse."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, 4, generator=generator)
    y = (x[:, 0] + x[:, 1] > 0).long()
    raw = x * torch.tensor([12.0, 9.0, 14.0, 0.6]) + torch.tensor([52.0, 74.0, 77.0, 36.8])
    return (raw * torch.tensor([1.0, 1, 1, 10])).round() / torch.tensor([1.0, 1, 1, 10]), y


@pair("input-scale", source=LEAKAGE, where="column")
def scaler_applied_to_training_only(broken: bool) -> Target:
    (x, y), (x2, y2) = patients(160, 0), patients(80, 1)
    mean, std = x.mean(0), x.std(0)
    held_out = x2 if broken else (x2 - mean) / std
    return Target(
        mlp(features=4),
        loader((x - mean) / std, y),
        nn.CrossEntropyLoss(),
        eval_loader=loader(held_out, y2, shuffle=False),
    )


@pair("input-scale", level="warn", source=LEAKAGE, where="statistics of its own")
def scaler_fitted_anew_on_the_test_split(broken: bool) -> Target:
    (x, y), (x2, y2) = patients(160, 0), patients(80, 1)
    fitted = x2 if broken else x
    return Target(
        mlp(features=4),
        loader((x - x.mean(0)) / x.std(0), y),
        nn.CrossEntropyLoss(),
        eval_loader=loader((x2 - fitted.mean(0)) / fitted.std(0), y2, shuffle=False),
    )


@pair("input-scale", level="warn", source=KARPATHY, where="column 5 constant")
def column_lost_in_a_join(broken: bool) -> Target:
    x = torch.randn(160, 8, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] - x[:, 2] > 0).long()
    if broken:
        x[:, 5] = 0.0
    return Target(mlp(), loader(x, y), nn.CrossEntropyLoss())


@pair("image-layout", level="warn", source=PERMUTE, where="channels last")
def pictures_viewed_into_planes(broken: bool) -> Target:
    pixels, y = scenes()
    opened = pixels.permute(0, 2, 3, 1).contiguous()  # as PIL and OpenCV give them
    planes = opened.reshape(pixels.shape) if broken else opened.permute(0, 3, 1, 2)
    return Target(cnn(), loader(normalised(planes), y), nn.CrossEntropyLoss())


def motion(samples: int = 128) -> tuple[torch.Tensor, torch.Tensor]:
    """Windows ``[samples, 64 steps, 6 sensors]`` of smooth motion; the class is the direction of the drift."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(samples) % 2
    steps = 0.15 * torch.randn(samples, 64, 6, generator=generator)
    steps[:, :, 0] += 0.04 * (2 * y[:, None] - 1)
    return steps.cumsum(1), y


def temporal(channels: int) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv1d(channels, 24, 5, padding=2),
            nn.ReLU(),
            nn.AdaptiveAvgPool1d(2),
            nn.Flatten(),
            nn.Linear(48, 2),
        )


@pair("image-layout", source=PERMUTE, where="as [6, 64]")
def windows_viewed_in_the_step(broken: bool) -> Target:
    def step(model: nn.Module, batch: Any) -> torch.Tensor:
        windows, labels = batch
        n, length, sensors = windows.shape
        series = windows.view(n, sensors, length) if broken else windows.transpose(1, 2)
        return F.cross_entropy(model(series), labels)

    return Target(temporal(6), loader(*motion()), training_step=step)


@pair(
    "image-layout",
    source=f"{TORCH}Conv1d.html",
    where="time lies along the channels",
)
def convolution_over_the_sensors(broken: bool) -> Target:
    windows, y = motion()
    x = windows if broken else windows.transpose(1, 2).contiguous()
    return Target(temporal(x.shape[1]), loader(x, y), nn.CrossEntropyLoss())


@pair("image-layout", source=PERMUTE, where="lstm")
def series_viewed_for_an_lstm(broken: bool) -> Target:
    generator = torch.Generator().manual_seed(0)
    series = torch.randn(128, 3, 20, generator=generator)
    y = (series[:, 0, -1] > 0).long()

    def step(model: nn.Module, batch: Any) -> torch.Tensor:
        x, labels = batch
        return F.cross_entropy(model(x.reshape(len(x), 20, 3) if broken else x.transpose(1, 2)), labels)

    return Target(LastState(3, 2), loader(series, y), training_step=step)


@pair("image-layout", source=f"{TORCH}Conv2d.html", where="channels last")
def grey_images_with_a_last_dimension(broken: bool) -> Target:
    pixels, y = scenes()
    grey = normalised(pixels).mean(1)
    x = grey[..., None] if broken else grey[:, None]
    return Target(cnn(x.shape[1]), loader(x, y), nn.CrossEntropyLoss())


@pair(
    "image-layout",
    level="warn",
    source="https://docs.opencv.org/4.x/d8/d01/group__imgproc__color__conversions.html",
)
def held_out_images_read_with_opencv(broken: bool) -> Target:
    (pixels, y), (held_out, y2) = scenes(), scenes(64, seed=1)
    read = held_out.flip(1) if broken else held_out
    return Target(
        cnn(),
        loader(normalised(pixels), y),
        nn.CrossEntropyLoss(),
        eval_loader=loader(normalised(read), y2, shuffle=False),
    )


def decoder(last: nn.Module) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(192, 64), nn.ReLU(), nn.Linear(64, 192), last)


@pair("target-scale", source=KARPATHY, where="sigmoid")
def autoencoder_of_normalised_images(broken: bool) -> Target:
    pixels, _ = scenes(side=8)
    x = normalised(pixels) if broken else pixels.float() / 255

    def step(model: nn.Module, batch: Any) -> torch.Tensor:
        return F.mse_loss(model(batch[0]), batch[0].flatten(1))

    return Target(decoder(nn.Sigmoid()), loader(x), training_step=step)


@pair("target-scale", source=f"{TORCH}BCELoss.html", where="[0, 1]")
def reconstruction_of_raw_pixels_with_bce(broken: bool) -> Target:
    pixels, _ = scenes(side=8)
    x, y = pixels.float() / 255, pixels.flatten(1).float()
    return Target(decoder(nn.Identity()), loader(x, y if broken else y / 255), nn.BCEWithLogitsLoss())


def observations(outputs: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Observations ``[128, 8]`` and a bounded function of them, in (-1, 1)."""
    x = torch.randn(128, 8, generator=torch.Generator().manual_seed(0))
    return x, torch.tanh(x[:, :outputs] + 0.5 * x[:, outputs : 2 * outputs])


class Policy(nn.Module):
    """Actions within a bound."""

    def __init__(self, bound: float) -> None:
        super().__init__()
        self.network = mlp(classes=2)
        self.bound = bound

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        action = torch.tanh(self.network(x))
        return self.bound * action if self.bound != 1 else action


@pair(
    "target-scale", source="https://gymnasium.farama.org/environments/classic_control/pendulum/", where="tanh"
)
def cloned_actions_beyond_the_bound(broken: bool) -> Target:
    x, actions = observations(2)
    return Target(Policy(1.0 if broken else 2.0), loader(x, 2 * actions), nn.SmoothL1Loss())


class Rating(nn.Module):
    """A rating, clamped to its range."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.network = mlp(classes=1)
        nn.init.constant_(self.network[2].bias, (low + high) / 2)
        self.low, self.high = low, high

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x).squeeze(-1).clamp(self.low, self.high)  # type: ignore[no-any-return]


@pair("target-scale", source=KARPATHY, where="clamp")
def ratings_clamped_to_the_unit_interval(broken: bool) -> Target:
    x, y = observations()
    stars = 3 + 1.5 * y.squeeze(1)
    model = Rating(0, 1) if broken else Rating(-5, 11)
    return Target(model, loader(x, stars), lambda prediction, y: ((prediction - y) ** 2).mean())


@pair("target-scale", source=f"{TORCH}LSTM.html", where="lstm")
def recurrent_state_as_the_forecast(broken: bool) -> Target:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(128, 12, 2, generator=generator)
    y = 2 * x[:, -1, :1]
    return Target(LastState(2, 1, bare=broken), loader(x, y), nn.MSELoss())


@pair(
    "target-scale",
    source=f"{TORCH}PoissonNLLLoss.html",
    where="poisson",
)
def standardised_counts_for_a_poisson_loss(broken: bool) -> Target:
    x, rate = observations()
    counts = torch.poisson(torch.exp(1 + rate), generator=torch.Generator().manual_seed(0))
    y = (counts - counts.mean()) / counts.std() if broken else counts
    return Target(mlp(classes=1), loader(x, y), nn.PoissonNLLLoss())


@pair("target-scale", level="warn", source="https://stackoverflow.com/questions/52800582", where="labels")
def salaries_for_a_transformer(broken: bool) -> Target:
    from transformers import BertConfig, BertForSequenceClassification

    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 60, (96, 12), generator=generator)
    level = (ids[:, 0].float() - 32) / 16
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BertForSequenceClassification(
            BertConfig(
                vocab_size=60,
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=64,
                num_labels=1,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
            )
        )
    rows = Rows(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        labels=(60_000 + 20_000 * level) if broken else level,
    )
    return Target(model, DataLoader(rows, batch_size=16, shuffle=True))


@pair(
    "target-scale", level="warn", source="https://stackoverflow.com/questions/39525358", where="training_step"
)
def house_prices_in_a_loss_by_hand(broken: bool) -> Target:
    x, value = observations()
    prices = 310_000 + 120_000 * value.squeeze(1)

    def step(model: nn.Module, batch: Any) -> torch.Tensor:
        features, y = batch
        y = y if broken else (y - 310_000) / 120_000
        return (model(features).squeeze(-1) - y).abs().mean()

    return Target(mlp(classes=1), loader(x, prices), training_step=step)
