"""Pictures inside text, for models that read both."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from auto_media import geometry, patched, pictures
from auto_sizes import BOS, FIRST, IMAGE, part_with
from auto_text import SAMPLES, Sample
from torch.utils.data import default_collate

WORDS = 8


def prompts(model: Any) -> Iterator[list[Sample]]:
    """The image's places, then words that follow from its colour."""
    generator = torch.Generator().manual_seed(0)
    classes = torch.randperm(SAMPLES, generator=generator) % 3
    config = getattr(model.config, "vision_config", None) or model.config
    channels, side = geometry(config)
    values, _ = pictures(classes, channels, side, generator)
    if model.config.is_encoder_decoder:
        yield _rows({"pixel_values": values, "labels": _written(classes, 0, generator)[0][:, 1:]})
    for fields in _forms(config, values):
        one = {name: value[:1] for name, value in fields.items()}
        try:
            count = _places(model, joined_images(one))
        except Exception:
            continue
        ids, labels = _written(classes, count, generator)
        text = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
        if model.config.model_type == "paligemma":
            text["token_type_ids"] = (labels != -100).long()
        if "image_grid_thw" in fields:
            yield _rows({**text, **fields, "mm_token_type_ids": (ids == IMAGE).long()})
        yield _rows({**text, **fields})
    ids, labels = _written(classes, 0, generator)
    text = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    yield _rows({**text, "pixel_values": values})


def _forms(config: Any, values: torch.Tensor) -> Iterator[dict[str, torch.Tensor]]:
    """The same picture as an architecture may want it."""
    side = values.shape[-1]
    sizes = torch.tensor([side, side]).expand(len(values), -1).contiguous()
    patch = getattr(part_with(config, "patch_size"), "patch_size", 8)
    patch = patch[0] if isinstance(patch, (list, tuple)) else patch
    if (merging := part_with(config, "spatial_merge_size")) is not None:
        frames = getattr(part_with(config, "temporal_patch_size"), "temporal_patch_size", 1)
        flat, grid = patched(values, patch, frames, merging.spatial_merge_size)
        yield {"pixel_values": flat, "image_grid_thw": grid}
        yield {"pixel_values": flat, "image_grid_thw": grid[:, None]}
    yield {"pixel_values": values}
    yield {"pixel_values": values[:, None], "image_sizes": sizes}
    tall = torch.tensor([2 * side, side]).expand(len(values), -1).contiguous()
    yield {"pixel_values": values[:, None].repeat(1, 3, 1, 1, 1), "image_sizes": tall}
    yield {"pixel_values": values, "image_sizes": sizes}
    yield {
        "pixel_values": values[:, None],
        "pixel_attention_mask": torch.ones(len(values), 1, side, side, dtype=torch.long),
    }
    yield {"pixel_values": values[:, None]}
    flat, grid = patched(values, patch, 1, 1)
    mask = torch.ones(flat.shape[:2], dtype=torch.long)
    yield {"pixel_values": flat, "pixel_attention_mask": mask, "spatial_shapes": grid[:, 1:].contiguous()}


def _places(model: Any, image: dict[str, torch.Tensor]) -> int:
    """How many places of the text an image takes."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        inner = model if hasattr(model, "get_image_features") else model.model
        found = inner.get_image_features(**image)
    found = getattr(found, "pooler_output", found) if not isinstance(found, torch.Tensor) else found
    found = found if isinstance(found, torch.Tensor) else torch.cat([part.flatten(0, -2) for part in found])
    return found.numel() // found.shape[-1]


def _written(
    classes: torch.Tensor, count: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    ones = torch.ones(len(classes), count, dtype=torch.long)
    first = FIRST + 4 * classes.view(-1, 1) + torch.randint(0, 4, (len(classes), 1), generator=generator)
    words = first + 12 * (torch.arange(WORDS) % 4)
    start = torch.full((len(classes), 1), BOS)
    ids = torch.cat([start, IMAGE * ones, words], 1)
    return ids, torch.cat([-100 * torch.ones_like(ids[:, : count + 1]), words], 1)


def _rows(fields: dict[str, torch.Tensor]) -> list[Sample]:
    return [{name: value[row] for name, value in fields.items()} for row in range(SAMPLES)]


def joined_images(fields: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A batch whose flat patches are in one row after the other, when grids tell them apart."""
    if "image_grid_thw" not in fields:
        return fields
    grids = fields["image_grid_thw"]
    return {
        **fields,
        "pixel_values": fields["pixel_values"].flatten(0, 1),
        "image_grid_thw": grids.flatten(0, 1) if grids.ndim == 3 else grids,
    }


def joined(samples: list[Sample]) -> Any:
    """A batch of samples, its images as the model wants them."""
    return joined_images(default_collate(samples))
