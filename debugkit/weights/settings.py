"""How spectra are computed: the workers, the memory, the cache, and who is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from debugkit.weights.ranks import Ranks


@dataclass(frozen=True)
class Progress:
    """How far an analysis has come.

    Attributes:
        done: matrices analysed.
        total: matrices in all.
        name: the one that was finished last.
        seconds_left: estimated from what the finished ones took.
    """

    done: int
    total: int
    name: str
    seconds_left: float


@dataclass(frozen=True)
class Settings:
    """What an analysis may use.

    Attributes:
        workers: matrices analysed side by side, on one BLAS thread each; ``None`` for one a core.
        memory: bytes that all workers together may hold; one matrix is always analysed, however large.
        precision: of the Gram products and eigenvalues.
        device: of torch, such as ``cuda``; ``None`` for LAPACK on the CPU.
        cache: a folder where eigenvalues are kept by the content of their tensor; ``None`` keeps none.
        on_progress: called after each matrix, from any thread, one call at a time.
        ranks: processes that share the work; ``None`` when this one is alone.
    """

    workers: int | None = None
    memory: int = 2**30
    precision: Literal["float64", "float32"] = "float64"
    device: str | None = None
    cache: Path | None = None
    on_progress: Callable[[Progress], object] | None = None
    ranks: Ranks | None = None
