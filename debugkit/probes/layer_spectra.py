"""The eigenvalue spectra of weight matrices."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from pydantic import Field

from debugkit.checkpoints.checkpoint import Checkpoint
from debugkit.errors import Unavailable
from debugkit.evidence import Cost, Deadline
from debugkit.target import Target
from debugkit.weights.engine import analyse
from debugkit.weights.layer_spectrum import LayerSpectrum
from debugkit.weights.matrix import Matrix, SkippedMatrix
from debugkit.weights.settings import Settings


@dataclass(frozen=True)
class LayerSpectra:
    """The spectra of all weight matrices, or of as many as the time allowed.

    Attributes:
        layers: in the model's order.
        skipped: what was left out on purpose.
        matrices: how many parameters could have been analysed.
        analysed: how many were.
        shares: names of the parameters that each process analysed.
    """

    cost: ClassVar[Cost] = "static"
    layers: tuple[LayerSpectrum, ...] = field(repr=False)
    skipped: tuple[SkippedMatrix, ...] = field(repr=False)
    matrices: int
    analysed: int
    shares: tuple[tuple[str, ...], ...] = field(default=(), repr=False)

    @staticmethod
    def collect(
        target: Target | None,
        checkpoint: Checkpoint | None,
        deadline: Deadline,
        *,
        seconds: Annotated[
            float,
            Field(
                gt=0,
                description="no matrix of a live model is begun after this time; depths stay evenly covered",
            ),
        ] = 60.0,
        max_side: Annotated[
            int,
            Field(
                ge=64, description="matrices whose short side is longer are left out (its cube is the cost)"
            ),
        ] = 8192,
        max_eigenvalues: Annotated[
            int, Field(ge=64, description="convolutions with more pooled eigenvalues are left out")
        ] = 15_000,
    ) -> LayerSpectra:
        """Analyse the matrices of a model, or of a checkpoint; never raises for what a parameter holds.

        Raises:
            Unavailable: there is neither.
        """
        if checkpoint is not None:
            found, skipped = list(checkpoint.matrices), list(checkpoint.skipped)
            settings, limit = checkpoint.settings, math.inf
        elif target is not None:
            from debugkit.weights.model_matrices import model_matrices

            found, skipped = model_matrices(target.model)
            settings, limit = _live_settings(target), seconds
        else:
            raise Unavailable("there is neither a model nor a checkpoint; pass Target(model)")
        wanted = []
        for one in found:
            if reason := _too_large(one, max_side, max_eigenvalues):
                skipped.append(SkippedMatrix(one.name, one.shape, reason))
            else:
                wanted.append(one)
        analysis = analyse(wanted, settings, min(limit, deadline.seconds_left))
        return LayerSpectra(analysis.layers, tuple(skipped), len(wanted), analysis.analysed, analysis.shares)

    @property
    def judged(self) -> list[LayerSpectrum]:
        """The layers with enough eigenvalues for a verdict."""
        return [layer for layer in self.layers if layer.judged]


def _live_settings(target: Target) -> Settings:
    """The GPU where the model is on one."""
    parameter = next(target.model.parameters(), None)
    device = str(parameter.device) if parameter is not None and parameter.is_cuda else None
    return Settings(device=device)


def _too_large(one: Matrix, max_side: int, max_eigenvalues: int) -> str | None:
    _, slices, *sides = one.sides[0]
    if min(sides) > max_side:
        return f"its short side {min(sides):,} is over `max-side` {max_side:,}"
    if slices * min(sides) > max(max_eigenvalues, max_side):
        return f"{slices * min(sides):,} eigenvalues are over `max-eigenvalues` {max_eigenvalues:,}"
    return None
