"""A classifier that has to know which id is padding: its outputs with and without that knowledge."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from debugkit.data.batch import size, sliceable, take
from debugkit.errors import Broken
from debugkit.probes.batches import Batches
from debugkit.probes.samples import Samples
from debugkit.probes.token_ids import TokenIds
from debugkit.probes.training_step import run_step
from debugkit.sandbox import Sandbox
from debugkit.target import Target
from debugkit.tokens.pad_trial import Effect, padded_part


def lacks_pad_id(target: Target, samples: Samples, ids: TokenIds) -> bool:
    """Whether a classifier of whole rows has a configuration that does not say which id is padding."""
    configs = _configs(target.model)
    several = any(count > 1 for count in samples.rows.batch_sizes)
    per_row = samples.labels.kind in ("classes", "multi-label", "values")
    return several and per_row and bool(configs) and all(config.pad_token_id is None for config in configs)


def with_pad_id(target: Target, sandbox: Sandbox, batches: Batches, ids: TokenIds) -> Effect | None:
    """Run two rows, padded ones if there are any, with and without an id of padding in the configuration.

    Returns:
        How far the scores move; infinitely far where the step raises without it. ``None`` where that can't be tried.
    """
    pad = ids.pad if ids.pad is not None else 0
    found = padded_part(batches, ids)
    part = found[0] if found is not None and (size(found[0]) or 0) > 1 else batches.first
    if part is batches.first and sliceable(part) and (size(part) or 0) > 2:
        part = take(part, range(2))

    def outputs() -> list[torch.Tensor]:
        with sandbox.probe(), _outputs_of(target.model) as seen:
            target.model.eval()
            run_step(target, part)
        return seen

    try:
        before: list[torch.Tensor] | None = outputs()
    except Broken:
        before = None
    try:
        with _pad_token(target.model, pad):
            after = outputs()
    except Broken:
        return None
    if before is None:
        return Effect(float("inf"), 0.0, "pad_token_id")
    pairs = [(one, other) for one, other in zip(before, after, strict=False) if one.shape == other.shape]
    gaps = [float((a - b).abs().max()) / (float(b.std(correction=0)) or 1.0) for a, b in pairs if a.numel()]
    return Effect(max(gaps), 0.0, "pad_token_id") if gaps else None


def _configs(model: torch.nn.Module) -> list[Any]:
    """The configurations that say which id is padding."""
    found: dict[int, Any] = {}
    for module in model.modules():
        config: Any = getattr(module, "config", None)
        if callable(getter := getattr(config, "get_text_config", None)):
            config = getter()
        if hasattr(config, "pad_token_id"):
            found[id(config)] = config
    return list(found.values())


@contextmanager
def _pad_token(model: torch.nn.Module, pad: int) -> Iterator[None]:
    """The configurations with an id of padding."""
    configs = _configs(model)
    before = [config.pad_token_id for config in configs]
    try:
        for config in configs:
            config.pad_token_id = pad
        yield
    finally:
        for config, value in zip(configs, before, strict=True):
            config.pad_token_id = value


@contextmanager
def _outputs_of(model: torch.nn.Module) -> Iterator[list[torch.Tensor]]:
    """The scores that the model gives in one call."""
    seen: list[torch.Tensor] = []

    def keep(module: torch.nn.Module, args: Any, output: Any) -> None:
        logits = getattr(output, "logits", output)
        if isinstance(logits, torch.Tensor) and logits.is_floating_point():
            seen.append(logits.detach().float().cpu())

    hook = model.register_forward_hook(keep)
    try:
        yield seen
    finally:
        hook.remove()
