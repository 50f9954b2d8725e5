"""image-layout beyond its own examples."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from debugkit.checks.data._neighbours import smoothness, unscrambled
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import debugkit
from debugkit import Target
from debugkit.report import Result

CE = nn.CrossEntropyLoss()


def judge(target: Target) -> Result:
    return debugkit.run(target, select="image-layout")["image-layout"]


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def smooth(samples: int = 16, channels: int = 3, height: int = 24, width: int = 16) -> torch.Tensor:
    return F.interpolate(noise(samples, channels, 5, 4), size=(height, width), mode="bilinear")


def target(x: torch.Tensor, model: nn.Module, step: Any = None) -> Target:
    y = torch.arange(len(x)) % 2
    loader = DataLoader(TensorDataset(x, y), batch_size=8, shuffle=True)
    return Target(model, loader, None if step else CE, training_step=step)


def head(first: nn.Module, channels: int) -> nn.Sequential:
    pool: nn.Module = nn.AdaptiveAvgPool2d(1) if isinstance(first, nn.Conv2d) else nn.AdaptiveAvgPool1d(1)
    return nn.Sequential(first, nn.ReLU(), pool, nn.Flatten(), nn.Linear(channels, 2))


@pytest.mark.parametrize(
    "scramble",
    [
        lambda x: x.permute(0, 2, 3, 1).reshape(x.shape),
        lambda x: x.reshape(len(x), *x.shape[2:], 3).permute(0, 3, 1, 2),
        lambda x: x.transpose(2, 3).reshape(x.shape),
    ],
)
def test_scrambled_pictures_are_put_right(scramble: Any) -> None:
    pictures = smooth()
    assert unscrambled(pictures, 0.15, 0.5) is None
    found = unscrambled(scramble(pictures), 0.15, 0.5)
    assert found is not None
    assert found.after == pytest.approx(min(smoothness(pictures)), abs=1e-5)


@pytest.mark.parametrize(
    "values",
    [
        noise(8, 3, 16, 16),
        noise(8, 1, 20, 40),
        noise(8, 3, 9, 64).cumsum(3),
        noise(8, 1, 22, 256).cumsum(3),
        smooth(8, 1).expand(8, 3, 24, 16),
        torch.zeros(8, 3, 16, 16),
        noise(8, 4, 96).cumsum(2),
        torch.full((8, 3, 16, 16), float("nan")),
    ],
)
def test_nothing_is_said_about_noise_and_series(values: torch.Tensor) -> None:
    assert unscrambled(values, 0.15, 0.5) is None


def test_a_pass_gives_the_correlations() -> None:
    result = judge(target(smooth(), head(nn.Conv2d(3, 4, 3), 4)))
    assert result.status == "pass"
    assert "[3, 24, 16]: neighbours correlate 0.9" in result.findings[0].message


def test_no_image_and_no_convolution_is_a_skip() -> None:
    assert judge(target(noise(16, 5), nn.Linear(5, 2))).status == "skip"


def test_order_means_nothing_to_a_layer_over_all_pixels() -> None:
    scrambled = smooth().permute(0, 2, 3, 1).reshape(16, 3, 24, 16)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 24 * 16, 2))
    assert judge(target(scrambled, model)).status != "warn"


@pytest.mark.parametrize("shape", [(1, 12, 12), (12, 12), (12, 12, 1)])
def test_dimensions_of_one_may_move_with_view(shape: tuple[int, ...]) -> None:
    def step(model: nn.Module, batch: Any) -> torch.Tensor:
        return F.cross_entropy(model(batch[0].view(-1, 1, 12, 12)), batch[1])

    x = smooth(16, 1, 12, 12).reshape(16, *shape)
    assert judge(target(x, head(nn.Conv2d(1, 4, 3), 4), step)).status == "pass"


def test_view_after_normalisation_in_the_step() -> None:
    pixels = (40 * smooth() + 120).clamp(0, 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()

    def step(model: nn.Module, batch: Any) -> torch.Tensor:
        x = (batch[0].float() / 255 - torch.tensor([0.4, 0.5, 0.6])) / 0.2
        return F.cross_entropy(model(x.view(-1, 3, 24, 16)), batch[1])

    result = judge(target(pixels, head(nn.Conv2d(3, 4, 3), 4), step))
    assert result.status == "fail"
    assert result.findings[0].hint == "use `x.permute(0, 3, 1, 2)`"


@pytest.mark.parametrize(
    ("x", "first"),
    [
        (noise(16, 40, 80).cumsum(1).cumsum(2), nn.Conv1d(40, 4, 3)),  # neighbours along both dimensions
        (noise(16, 40, 80).cumsum(1), nn.Conv1d(40, 4, 1)),  # a kernel of one slides over nothing
        (noise(16, 3, 128), nn.Conv1d(3, 4, 1)),
        (noise(16, 40, 60, 1), nn.Conv2d(40, 4, (3, 1))),
        (noise(16, 60, 9, 9).cumsum(1), nn.Conv2d(60, 4, 3)),
    ],
)
def test_healthy_convolutions(x: torch.Tensor, first: nn.Module) -> None:
    assert judge(target(x, head(first, 4))).status == "pass"


def test_shape_alone_is_a_warning() -> None:
    x = noise(16, 32, 32, 3)
    result = judge(target(x, head(nn.Conv2d(32, 4, 3, padding=1), 4)))
    assert result.status == "warn"


def test_a_step_that_fails_leaves_the_data_to_judge() -> None:
    scrambled = smooth().permute(0, 2, 3, 1).reshape(16, 3, 24, 16)
    assert judge(target(scrambled, nn.Linear(7, 2))).status == "warn"
