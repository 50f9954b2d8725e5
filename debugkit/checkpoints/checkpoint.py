"""A checkpoint whose tensors are read one at a time: what the moment after training hands over."""

from __future__ import annotations

from dataclasses import dataclass, field

from debugkit.evidence import root
from debugkit.weights.matrix import Matrix, SkippedMatrix
from debugkit.weights.settings import Settings


@root
@dataclass(frozen=True)
class Checkpoint:
    """The weight matrices of a checkpoint, none of them read yet.

    Attributes:
        name: as reports show it.
        matrices: in the checkpoint's order.
        skipped: tensors with two or more dimensions that stand for no matrix, or can't be read as one.
        settings: how the spectra are computed.
    """

    name: str
    matrices: tuple[Matrix, ...]
    skipped: tuple[SkippedMatrix, ...] = ()
    settings: Settings = field(default_factory=Settings)
