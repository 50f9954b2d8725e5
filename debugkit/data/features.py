"""Cheap features of samples: numbers as they are, tokens and words as bags; learned from one split, read off any."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from debugkit.data.feature_blocks import Block, Feature, blocks_of
from debugkit.data.rows import Rows

Array = np.ndarray[Any, Any]

_FARTHEST = 6.0


@dataclass(frozen=True, eq=False)
class Features:
    """A feature matrix.

    Attributes:
        matrix: ``[n, d]`` float64, centred and scaled for a linear model.
        raw: ``[n, d]`` float32: the values themselves; 0 and 1 for bags.
        columns: what each of the d stands for.
    """

    matrix: Array = field(repr=False)
    raw: Array = field(repr=False)
    columns: Sequence[Feature] = field(repr=False)


@dataclass(frozen=True, eq=False)
class _Scaled:
    """A block with the scales that were learned; every block weighs the same for a linear model."""

    block: Block
    mean: Array
    scale: Array

    @staticmethod
    def learn(block: Block, rows: Rows) -> _Scaled | None:
        raw = block.read(rows)
        if raw is None or not raw.size:
            return None
        mean, std = raw.mean(0), raw.std(0)
        varies = std > 1e-6 * np.abs(mean)
        if not varies.any():
            return None
        if block.bag:
            rarity = np.log(len(raw) / np.maximum(raw.sum(0), 1)) + 1
            total = float(_levelled(raw * rarity).var(0).sum())
            return _Scaled(block, mean * 0, rarity / max(total, 1e-12) ** 0.5)
        scale = np.where(varies, 1 / np.where(varies, std, 1), 0) / np.sqrt(varies.sum())
        return _Scaled(block, mean, scale)

    def apply(self, raw: Array) -> Array:
        scaled = (raw - self.mean) * self.scale
        if self.block.bag:
            return _levelled(scaled)
        limit = _FARTHEST / np.sqrt(max((self.scale > 0).sum(), 1))
        return np.asarray(np.clip(scaled, -limit, limit))


class FeatureMap:
    """Turns rows into a feature matrix.

    Args:
        rows: the samples to learn from: vocabularies, means and scales.
    """

    def __init__(self, rows: Rows) -> None:
        found = (_Scaled.learn(block, rows) for block in blocks_of(rows) if block.columns)
        self._blocks = [block for block in found if block is not None]

    def __bool__(self) -> bool:
        return bool(self._blocks)

    def read(self, rows: Rows) -> Features | None:
        """The features of rows; ``None`` where they lack a key, or its values have another shape."""
        matrices, raws = [], []
        for scaled in self._blocks:
            raw = scaled.block.read(rows)
            if raw is None or raw.shape != (rows.count, len(scaled.mean)):
                return None
            matrices.append(scaled.apply(raw).astype(np.float64))
            raws.append(raw)
        if not raws:
            return None
        columns = [column for scaled in self._blocks for column in scaled.block.columns]
        return Features(np.concatenate(matrices, 1), np.concatenate(raws, 1), columns)


def _levelled(weighted: Array) -> Array:
    """Rows of about the same length, so that long texts do not count for more."""
    lengths = np.sqrt((weighted**2).sum(1, keepdims=True))
    filled = lengths[lengths > 0]
    level = float(np.median(filled)) if len(filled) else 1.0
    return np.asarray(weighted / np.maximum(lengths, 1e-12) * level)
