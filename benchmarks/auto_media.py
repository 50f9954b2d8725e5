"""Pictures, films and sound that a head can learn, all about N(0, 1)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from auto_sizes import BOS, FIRST, LAST, LENGTH, SIDE, part_with
from auto_text import SAMPLES, Sample

CLASSES = 3
TONES = 4
WAVE = 1280
COLOURS = torch.tensor([[1.5, -0.5, -0.5], [-0.5, 1.5, -0.5], [-0.5, -0.5, 1.5]])


def geometry(config: Any) -> tuple[int, int]:
    """``(channels, side)`` of the pictures that an architecture wants."""
    part = part_with(config, "image_size") or part_with(config, "crop_size")
    side = getattr(part, "image_size", None) or getattr(part, "crop_size", None) or 2 * SIDE
    side = side[0] if isinstance(side, (list, tuple)) else side
    side = side.get("height", SIDE) if isinstance(side, dict) else side
    channels = part_with(config, "num_channels")
    return int(channels.num_channels) if channels is not None else 3, int(side)


def _noise(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=generator)


def _normal(values: torch.Tensor) -> torch.Tensor:
    return (values - values.mean()) / values.std()


def pictures(
    classes: torch.Tensor, channels: int, side: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise with a square of the class's colour at any place: ``[n, channels, side, side]`` and boxes ``[n, 4]``.

    The boxes are ``(x, y, width, height)`` of the centre, as shares of the side.
    """
    images = 0.5 * _noise(generator, len(classes), channels, side, side)
    width = side // 2
    corners = torch.randint(0, side - width + 1, (len(classes), 2), generator=generator)
    palette = COLOURS.repeat(1, (channels + 2) // 3)[:, :channels] if channels > 1 else COLOURS[:, :1] * 0
    for image, kind, (x, y) in zip(images, classes.tolist(), corners.tolist(), strict=True):
        square = 2 * palette[kind % 3].view(-1, 1, 1)
        image[:, y : y + width, x : x + width] += square if channels > 1 else float(kind % 3 - 1) * 2
    centres = (corners + width / 2) / side
    return _normal(images), torch.cat([centres, torch.full_like(centres, width / side)], 1)


def _classes(generator: torch.Generator, most: int = CLASSES) -> torch.Tensor:
    return torch.randperm(SAMPLES, generator=generator) % most


def _rows(**fields: torch.Tensor) -> list[Sample]:
    return [{name: value[row] for name, value in fields.items()} for row in range(SAMPLES)]


def images(config: Any) -> Iterator[list[Sample]]:
    """The colour of a square decides the class."""
    generator = torch.Generator().manual_seed(0)
    labels = _classes(generator)
    values, _ = pictures(labels, *geometry(config), generator)
    yield _rows(pixel_values=values, labels=labels)
    if (fields := _patches(config, values)) is not None:
        yield _rows(**fields, labels=labels)


def regions(config: Any) -> Iterator[list[Sample]]:
    """Three vertical bands in an own order: their colour is the class of each pixel."""
    values, labels = _bands(config)
    yield _rows(pixel_values=values, labels=labels)


def _bands(config: Any) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    channels, side = geometry(config)
    orders = torch.stack([torch.randperm(CLASSES, generator=generator) for _ in range(SAMPLES)])
    labels = orders[:, (torch.arange(side) * CLASSES) // side][:, None].expand(-1, side, -1).contiguous()
    values = COLOURS[labels].permute(0, 3, 1, 2)[:, :channels]
    return _normal(values + 0.5 * _noise(generator, *values.shape)), labels


def masks(config: Any) -> Iterator[list[Sample]]:
    """The bands as one mask for each class."""
    values, labels = _bands(config)
    masks = torch.stack([labels == kind for kind in range(CLASSES)], 1).float()
    kinds = torch.arange(CLASSES).expand(SAMPLES, -1).contiguous()
    yield _rows(pixel_values=values, mask_labels=masks, class_labels=kinds)


def depths(config: Any) -> Iterator[list[Sample]]:
    """Smooth brightness is the depth of each pixel, above 0."""
    generator = torch.Generator().manual_seed(0)
    channels, side = geometry(config)
    coarse = _noise(generator, SAMPLES, 1, 3, 3)
    smooth = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bilinear", align_corners=True)
    values = _normal(smooth + 0.3 * _noise(generator, SAMPLES, channels, side, side))
    yield _rows(pixel_values=values, labels=(0.5 * smooth[:, 0]).exp())


def hidden_patches(config: Any) -> Iterator[list[Sample]]:
    """Pictures of which a part is hidden."""
    generator = torch.Generator().manual_seed(0)
    channels, side = geometry(config)
    values, _ = pictures(_classes(generator), channels, side, generator)
    patch = part_with(config, "patch_size").patch_size  # type: ignore[union-attr]
    count = (side // patch) ** 2
    hidden = torch.rand((SAMPLES, count), generator=generator).argsort(1) < count // 2
    yield _rows(pixel_values=values, bool_masked_pos=hidden)


def objects(config: Any) -> Iterator[list[Sample]]:
    """One coloured square for each picture, to be found and named."""
    generator = torch.Generator().manual_seed(0)
    kinds = _classes(generator)
    values, boxes = pictures(kinds, *geometry(config), generator)
    yield [
        {"pixel_values": image, "labels": {"class_labels": kind.view(1), "boxes": box.view(1, 4)}}
        for image, kind, box in zip(values, kinds, boxes, strict=True)
    ]


def films(config: Any) -> Iterator[list[Sample]]:
    """Frames of one place; their colour decides the class."""
    generator = torch.Generator().manual_seed(0)
    labels = _classes(generator)
    channels, side = geometry(config)
    part = part_with(config, "num_frames") or part_with(config, "frames_per_clip")
    frames = int(getattr(part, "num_frames", None) or getattr(part, "frames_per_clip", None) or 4)
    still, _ = pictures(labels, channels, side, generator)
    film = _normal(still[:, None] + 0.3 * _noise(generator, SAMPLES, frames, channels, side, side))
    yield _rows(pixel_values=film, labels=labels)
    yield _rows(pixel_values_videos=film, labels=labels)


def captioned(config: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures ``[n, channels, side, side]`` with a square in an own cell, and captions that name the cell."""
    generator = torch.Generator().manual_seed(0)
    channels, side = geometry(config)
    across, down = torch.arange(SAMPLES) % 8, torch.arange(SAMPLES) // 8
    values = 0.5 * _noise(generator, SAMPLES, channels, side, side)
    cell = max(side // 8, 1)
    for image, x, y in zip(values, across.tolist(), down.tolist(), strict=True):
        image[:, y * cell : (y + 1) * cell, :] += 2
        image[:, :, x * cell : (x + 1) * cell] -= 2
    words = torch.stack([FIRST + across, FIRST + 20 + down], 1)
    ends = torch.full((SAMPLES, 1), LAST)
    return _normal(values), torch.cat(
        [torch.full((SAMPLES, 1), BOS), words.repeat(1, LENGTH // 2 - 1), ends], 1
    )


def captions(config: Any) -> Iterator[list[Sample]]:
    """Pairs of a picture and its own caption."""
    values, ids = captioned(config)
    fields = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": values}
    yield _rows(**fields)
    if (patches := _patches(config, values)) is not None:
        yield _rows(**{**fields, **patches})


def _patches(config: Any, values: torch.Tensor) -> dict[str, torch.Tensor] | None:
    """Pictures as flat patches with a mask and the shape of the grid."""
    part = part_with(config, "patch_size")
    if part is None or not isinstance(part.patch_size, int) or values.shape[-1] % part.patch_size:
        return None
    patches, grid = patched(values, part.patch_size, 1, 1)
    mask = torch.ones(patches.shape[:2], dtype=torch.long)
    return {"pixel_values": patches, "pixel_attention_mask": mask, "spatial_shapes": grid[:, 1:].contiguous()}


def patched(values: torch.Tensor, patch: int, frames: int, merge: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures as rows of flat patches ``[n, patches, channels * frames * patch**2]`` with grids ``[n, 3]``."""
    count, channels, side, _ = values.shape
    across = side // patch
    parts = values.reshape(count, channels, across // merge, merge, patch, across // merge, merge, patch)
    parts = parts.permute(0, 2, 5, 3, 6, 1, 4, 7).unsqueeze(6).expand(*[-1] * 6, frames, -1, -1)
    grid = torch.tensor([1, across, across]).expand(count, -1).contiguous()
    return parts.reshape(count, across**2, -1), grid
