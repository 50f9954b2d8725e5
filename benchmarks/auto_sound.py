"""Sound and series that a head can learn, all about N(0, 1)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from auto_sizes import EOS, FIRST, part_with
from auto_text import SAMPLES, Sample

CLASSES, TONES, WAVE = 3, 4, 1280
BIN_NAMES = (
    "num_mel_bins",
    "feature_projection_input_dim",
    "input_feat_per_channel",
    "input_dim",
    "feature_size",
)
FRAME_NAMES = ("max_source_positions", "max_length")


def waves(tones: torch.Tensor, generator: torch.Generator, length: int = WAVE) -> torch.Tensor:
    """Sine waves ``[n, length]`` with noise whose pitch follows ``tones`` ``[n, segments]``."""
    pitch = (0.05 * (tones + 1)).repeat_interleave(length // tones.shape[1], 1)
    phase = torch.rand((len(tones), 1), generator=generator)
    values = (2 * torch.pi * (pitch.cumsum(1) + phase)).sin()
    return _normal(values + 0.1 * torch.randn(values.shape, generator=generator))


def bands(tones: torch.Tensor, bins: int, frames: int, generator: torch.Generator) -> torch.Tensor:
    """Spectrograms ``[n, frames, bins]`` whose loud band follows ``tones`` ``[n, segments]``."""
    spread = (torch.arange(frames) * tones.shape[1]) // frames
    centre = (tones[:, spread] + 0.5) * bins / (TONES + 1)
    loud = (-((torch.arange(bins) - centre.unsqueeze(-1)) ** 2) / (bins / 6)).exp()
    return _normal(3 * loud + 0.5 * torch.randn(loud.shape, generator=generator))


def _normal(values: torch.Tensor) -> torch.Tensor:
    return (values - values.mean()) / values.std()


def forms(config: Any, tones: torch.Tensor, generator: torch.Generator) -> Iterator[dict[str, torch.Tensor]]:
    """The same sound as an architecture may want it: a wave, or frames and bins in either order."""
    for name in ("input_values", "input_features"):
        yield {name: waves(tones, generator)}
        for bins, frames in _shapes(config):
            values = bands(tones, bins, frames, generator)
            mask = torch.ones(values.shape[:2], dtype=torch.long)
            yield {name: values.transpose(1, 2).contiguous()}
            yield {name: values, "attention_mask": mask}
            yield {name: values}


def _shapes(config: Any) -> Iterator[tuple[int, int]]:
    found = {getattr(part, name) for name in BIN_NAMES if (part := part_with(config, name)) is not None}
    for bins in sorted(value for value in found if isinstance(value, int)):
        for name in FRAME_NAMES:
            if (part := part_with(config, name)) is not None and isinstance(getattr(part, name), int):
                yield bins, getattr(part, name) * (2 if name == "max_source_positions" else 1)
        yield bins, 64


def _rows(fields: dict[str, torch.Tensor]) -> list[Sample]:
    return [{name: value[row] for name, value in fields.items()} for row in range(SAMPLES)]


def sounds(config: Any) -> Iterator[list[Sample]]:
    """The pitch decides the class."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randperm(SAMPLES, generator=generator) % CLASSES
    for form in forms(config, labels.view(-1, 1), generator):
        yield _rows({**form, "labels": labels})


def _melodies(generator: torch.Generator) -> torch.Tensor:
    """Four tones each, no two neighbours alike."""
    steps = torch.randint(1, TONES, (SAMPLES, TONES), generator=generator)
    return steps.cumsum(1) % TONES


def spellings(config: Any) -> Iterator[list[Sample]]:
    """Each tone is a letter."""
    generator = torch.Generator().manual_seed(0)
    tones = _melodies(generator)
    for form in forms(config, tones, generator):
        yield _rows({**form, "labels": FIRST + tones})


def transcripts(config: Any) -> Iterator[list[Sample]]:
    """Each tone is a token; an end follows."""
    generator = torch.Generator().manual_seed(0)
    tones = _melodies(generator)
    labels = torch.cat([FIRST + tones, torch.full((SAMPLES, 1), EOS)], 1)
    for form in forms(config, tones, generator):
        yield _rows({**form, "labels": labels})


def frames(config: Any) -> Iterator[list[Sample]]:
    """Each frame has the class of its tone, one-hot; the number of frames is the model's."""
    generator = torch.Generator().manual_seed(0)
    tones = _melodies(generator) % CLASSES
    for form in forms(config, tones, generator):
        for count in _frame_counts(config, form):
            spread = (torch.arange(count) * TONES) // count
            yield _rows({**form, "labels": torch.nn.functional.one_hot(tones[:, spread], CLASSES).float()})


def _frame_counts(config: Any, form: dict[str, torch.Tensor]) -> Iterator[int]:
    length = next(iter(form.values())).shape[1]
    for kernel, stride in zip(
        getattr(config, "conv_kernel", ()), getattr(config, "conv_stride", ()), strict=False
    ):
        length = (length - kernel) // stride + 1
    yield length


def _series(length: int, channels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Waves of three frequencies ``[n, length, channels]`` at any phase, and which of them ``[n]``."""
    generator = torch.Generator().manual_seed(0)
    kinds = torch.randperm(SAMPLES, generator=generator) % CLASSES
    phase = torch.rand((SAMPLES, 1, channels), generator=generator)
    speed = 0.05 * (1 + kinds).view(-1, 1, 1)
    values = (2 * torch.pi * (speed * torch.arange(length).view(1, -1, 1) + phase)).sin()
    return _normal(values + 0.1 * torch.randn(values.shape, generator=generator)), kinds


def _ahead(config: Any) -> int:
    return getattr(config, "prediction_length", None) or getattr(config, "horizon_length", None) or 8


def _lengths(config: Any) -> tuple[int, int, int]:
    channels = getattr(config, "num_input_channels", 1) or 1
    return getattr(config, "context_length", 32), _ahead(config), channels


def series_classes(config: Any) -> Iterator[list[Sample]]:
    """The frequency decides the class."""
    length, _, channels = _lengths(config)
    values, kinds = _series(length, channels)
    yield _rows({"past_values": values, "target_values": kinds})


def series_numbers(config: Any) -> Iterator[list[Sample]]:
    """The last values' means are the targets."""
    length, _, channels = _lengths(config)
    values, _ = _series(length, channels)
    targets = values[:, -4:].mean((1, 2)).view(-1, 1).expand(-1, getattr(config, "num_targets", 1))
    yield _rows({"past_values": values, "target_values": _normal(targets).contiguous()})


def futures(config: Any) -> Iterator[list[Sample]]:
    """The wave goes on."""
    length, ahead, channels = _lengths(config)
    lags = max(getattr(config, "lags_sequence", None) or [0])
    values, _ = _series(length + lags + ahead, channels)
    past, future = values[:, :-ahead], values[:, -ahead:]
    yield _rows({"past_values": past, "future_values": future})
    yield _rows({"past_values": past[..., 0], "future_values": future[..., 0]})
    clock = torch.linspace(-0.5, 0.5, values.shape[1]).view(1, -1, 1).expand(SAMPLES, -1, 1)
    fields = {"past_values": past, "future_values": future}
    if channels == 1:
        fields = {name: value.squeeze(-1) for name, value in fields.items()}
    fields["past_time_features"], fields["future_time_features"] = clock[:, :-ahead], clock[:, -ahead:]
    fields["past_observed_mask"] = torch.ones_like(fields["past_values"])
    yield _rows(fields)
