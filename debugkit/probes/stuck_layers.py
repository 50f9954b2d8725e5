"""Layers of zeros that no gradient will ever change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from debugkit.errors import Unavailable
from debugkit.evidence import Cost
from debugkit.probes.gradients import Gradients
from debugkit.probes.layer_spectra import LayerSpectra


@dataclass(frozen=True)
class ZeroLayers:
    """The weight matrices that are all zero, where there are any.

    Attributes:
        parameters: their dotted names.
    """

    cost: ClassVar[Cost] = "static"
    parameters: frozenset[str]

    @staticmethod
    def collect(spectra: LayerSpectra) -> ZeroLayers:
        """Find them.

        Raises:
            Unavailable: no weight matrix is all zero.
        """
        found = frozenset(layer.parameter for layer in spectra.layers if layer.zero)
        if not found:
            raise Unavailable("no weight matrix is all zero")
        return ZeroLayers(found)


@dataclass(frozen=True)
class StuckLayers:
    """The weight matrices of zeros whose gradient is zero too; models without zeros are spared the step.

    Attributes:
        parameters: their dotted names.
    """

    cost: ClassVar[Cost] = "backward"
    parameters: frozenset[str]

    @staticmethod
    def collect(zeros: ZeroLayers, gradients: Gradients) -> StuckLayers:
        """Only where a matrix is zero: needs are collected in order.

        Where other gradients begin once zeros are left behind, a longer chain of zeros may still come alive,
        so nothing is called stuck.
        """
        if gradients.zero_at_start:
            return StuckLayers(frozenset())
        return StuckLayers(zeros.parameters.intersection(gradients.zero))
