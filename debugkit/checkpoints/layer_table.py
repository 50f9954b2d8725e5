"""The layers of a checkpoint as a table, for those who want the numbers."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from debugkit.checkpoints.checkpoint import open_checkpoint
from debugkit.errors import UsageError
from debugkit.weights.engine import analyse
from debugkit.weights.layer_spectrum import LayerSpectrum

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class LayerTable:
    """One row per layer, in the checkpoint's order.

    Attributes:
        layers: the spectra.
    """

    layers: tuple[LayerSpectrum, ...]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The measures of each layer by name; ``None`` where one could not be taken."""
        return [_row(layer) for layer in self.layers]

    def to_pandas(self) -> pandas.DataFrame:
        """The rows as a data frame.

        Raises:
            UsageError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise UsageError('data frames need an extra: pip install "debugkit[pandas]"') from error
        return pandas.DataFrame(self.rows)

    def write(self, path: str | Path) -> None:
        """Write the rows as CSV or JSON, as the name ends.

        Raises:
            UsageError: the name ends otherwise, or the file can't be written.
        """
        write_rows(self.rows, path)


def read_layers(path: str | Path, base: str | Path | None = None) -> LayerTable:
    """The measures of every layer of a checkpoint, without a verdict::

        read_layers("checkpoint-500").to_pandas().sort_values("alpha")

    Args:
        path: as for :func:`debugkit.checkpoints.checkpoint.open_checkpoint`.
        base: the base model of a LoRA adapter.

    Raises:
        UsageError: there is nothing to read, or it can't be read.
    """
    return LayerTable(analyse(open_checkpoint(path, base).matrices).layers)


def refuse_table(path: str | Path) -> None:
    """Refuse a name that ends neither in ``.csv`` nor in ``.json``.

    Raises:
        UsageError: it does.
    """
    if Path(path).suffix not in (".csv", ".json"):
        raise UsageError(f"`--layers {path}` must end in .csv or .json")


def write_rows(rows: Sequence[dict[str, Any]], path: str | Path) -> None:
    """Write rows of the same columns as CSV or JSON, as the name ends.

    Raises:
        UsageError: the name ends otherwise, or the file can't be written.
    """
    refuse_table(path)
    place = Path(path)
    try:
        with place.open("w", encoding="utf-8", newline="") as file:
            if place.suffix == ".json":
                json.dump(rows, file, indent=1, allow_nan=False)
            else:
                writer = csv.DictWriter(file, list(rows[0]) if rows else [])
                writer.writeheader()
                writer.writerows(rows)
    except OSError as error:
        raise UsageError(f"`--layers {path}` can't be written: {error.strerror}") from error


def _row(layer: LayerSpectrum) -> dict[str, Any]:
    fit, noise = layer.power_law, layer.noise
    measured = layer.measured
    row: dict[str, Any] = {
        "layer": layer.parameter,
        "part": layer.part,
        "kind": layer.kind,
        "shape": "x".join(map(str, layer.shape)),
        "eigenvalues": layer.count,
        "usable": layer.usable,
        "alpha": fit.alpha if fit else None,
        "sigma": fit.sigma if fit else None,
        "xmin": fit.xmin if fit else None,
        "distance": fit.distance if fit else None,
        "tail": fit.tail if fit else None,
        "alpha_hat": layer.alpha_hat if fit else None,
        "log_alpha_norm": layer.log_alpha_norm if fit else None,
        "log_spectral_norm": layer.log_spectral_norm if measured else None,
        "frobenius_norm": layer.frobenius_norm if measured else None,
        "stable_rank": layer.stable_rank if measured else None,
        "entropy": layer.entropy if measured else None,
        "bulk_edge": layer.bulk_edge if measured else None,
        "spikes": layer.spikes if measured else None,
        "noise_ks": noise.ks if noise else None,
        "noise_edge": noise.edge if noise else None,
        "correlation_trap": layer.correlation_trap,
        "dead_rows": layer.dead_rows,
        "duplicate_rows": layer.duplicate_rows,
        "finite": layer.finite,
        "zero": layer.zero,
        "unjudged": layer.unjudged,
    }
    return row
