"""What is read from the values of a matrix: eigenvalues, and the few facts that they do not tell."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from debugkit.weights.eigenvalues import gram_eigenvalues, gram_of, widened
from debugkit.weights.marchenko_pastur import bulk_edge, tracy_widom_scale
from debugkit.weights.matrix import Array, Matrix
from debugkit.weights.pages import blocks
from debugkit.weights.spectrum import uniform_edge

_BLOCK = 2**20
_SAMPLED_VALUES = 2**16
_FLAT = 1.1
_FLAT_PROBE = 0.06


@dataclass(frozen=True)
class Reading:
    """The values of one part of a parameter, in numbers.

    Attributes:
        eigenvalues: squared singular values ``[matrices, M]``, ascending; empty where there are none to measure.
        finite: whether no value is NaN or infinite, or so large that its square is.
        zero: whether every value is 0.
        orthogonal: whether the parameter that the part was cut from has orthonormal columns, up to a factor.
        uniform: whether the values have the sharp edge and the flat distribution of torch's default initialisation.
        few_levels: whether short blocks of values take few levels each, as after 4-bit quantisation.
        dead_rows: outputs whose weights are all 0.
        duplicate_rows: outputs whose weights repeat those of an earlier output.
        randomised_edge: how far the largest eigenvalue lies beyond the bulk edge once the entries are permuted, in
            Tracy-Widom scales, as the largest entry and the mean predict it; 0 where neither can be seen.
    """

    eigenvalues: Array
    finite: bool = True
    zero: bool = False
    orthogonal: bool = False
    uniform: bool = False
    few_levels: bool = False
    dead_rows: int = 0
    duplicate_rows: int = 0
    randomised_edge: float = 0.0


def read(matrix: Matrix, precision: str = "float64", device: str | None = None) -> list[Reading]:
    """Load a parameter and read each of its parts."""
    values = matrix.load()
    orthogonal = len(matrix.parts) > 1 and matrix.kind != "experts" and _is_orthogonal(values)
    found = []
    for _, part in matrix.cut(values):
        rows = part[0] if len(part) == 1 else values.reshape(len(values), -1)
        if matrix.outputs == 1 and rows.ndim == 2:
            rows = rows.T
        found.append(_read(part, rows, orthogonal, precision, device))
    return found


def _read(part: Array, rows: Array, orthogonal: bool, precision: str, device: str | None) -> Reading:
    largest, mean = _extent(part)
    nothing = np.empty((len(part), 0))
    if largest == 0.0 or not largest < float("inf"):
        return Reading(nothing, finite=largest == 0.0, zero=largest == 0.0)
    eigenvalues = gram_eigenvalues(part, precision, device)
    if np.isnan(eigenvalues[:, -1]).any():
        return Reading(nothing, finite=False)
    square = float(eigenvalues.sum()) / part.size
    dead, duplicate = _silent_rows(rows)
    return Reading(
        eigenvalues,
        orthogonal=orthogonal or bool((eigenvalues[:, -1] < _FLAT * eigenvalues[:, 0]).all()),
        uniform=_is_uniform(part, largest, square),
        few_levels=has_few_levels(part),
        dead_rows=dead,
        duplicate_rows=duplicate,
        randomised_edge=_randomised_edge(part, largest, mean, square),
    )


def _extent(part: Array) -> tuple[float, float]:
    """max|w|, NaN where a value is, and the mean."""
    flat = part.reshape(-1)
    highest, lowest, total = 0.0, 0.0, 0.0
    for stored in blocks(flat, _BLOCK):
        block = widened(stored)
        high, low = float(block.max()), float(block.min())
        if not (np.isfinite(high) and np.isfinite(low)):
            return float("nan"), 0.0
        highest, lowest = max(highest, high), min(lowest, low)
        total += float(block.sum(dtype=np.float64 if block.dtype == np.float16 else None))
    return max(highest, -lowest), total / max(1, len(flat))


def _is_uniform(part: Array, largest: float, square: float) -> bool:
    """Kurtosis 1.8 and a largest value at the very edge: within four standard errors of each."""
    tolerance = max(0.02, 2.0 / min(part.size, _SAMPLED_VALUES) ** 0.5)
    if not abs(uniform_edge(largest, square**0.5) - 1) < tolerance:
        return False
    step = (part.size // _SAMPLED_VALUES) | 1
    sample = widened(part.reshape(-1)[::step]).astype(np.float64) ** 2
    kurtosis = float((sample**2).mean()) / float(sample.mean()) ** 2
    return bool(abs(kurtosis - 1.8) < 1.8 * tolerance)


def has_few_levels(values: Array, block: int = 32, levels: int = 16) -> bool:
    """Whether blocks of values along the last dimension take few levels each, as they do after GGUF's Q4 or NF4."""
    if values.shape[-1] < block:
        return False
    rows = np.sort(widened(values.reshape(-1, values.shape[-1])[:64, :block]), 1)
    distinct = 1 + (rows[:, 1:] != rows[:, :-1]).sum(1)
    return bool(
        (distinct <= levels).all() and np.median(distinct) >= 5 and (rows != 0).mean(dtype=np.float64) > 0.5
    )


def _silent_rows(rows: Array) -> tuple[int, int]:
    """How many rows are all 0, and how many others repeat an earlier one."""
    first = widened(np.ascontiguousarray(rows[:, :2])).astype(np.complex128)
    keys = first[:, 0] + 1j * first[:, -1]
    _, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
    suspects = np.flatnonzero((counts[inverse] > 1) | (keys == 0))
    seen: set[bytes] = set()
    dead = 0
    for index in suspects:
        row = widened(np.ascontiguousarray(rows[index]))
        if row.any():
            seen.add(row.tobytes())
        else:
            dead += 1
    return dead, len(suspects) - dead - len(seen)


def _is_orthogonal(values: Array) -> bool:
    """Whether a matrix, before it is cut, has all its eigenvalues within a tenth; one product rules most out."""
    matrix = widened(values.reshape(-1, values.shape[-1]) if values.ndim > 2 else values)
    if not np.isfinite(matrix.sum()):
        return False
    wide = matrix if len(matrix) <= matrix.shape[1] else matrix.T
    probe = np.random.default_rng(0).standard_normal(len(wide)).astype(np.float32)
    image = wide @ (probe @ wide)
    spread = image - (float(probe @ image) / float(probe @ probe)) * probe
    if not float(np.linalg.norm(spread)) < _FLAT_PROBE * float(np.linalg.norm(image)):
        return False
    eigenvalues = np.linalg.eigvalsh(gram_of(matrix))
    return bool(0 < eigenvalues[-1] < _FLAT * eigenvalues[0])


def _randomised_edge(part: Array, largest: float, mean: float, square: float) -> float:
    """Where the largest eigenvalue goes when the entries are permuted; predicted, so that nothing is decomposed twice.

    Permuted entries are independent, but their largest one and their mean are still rank-one parts of strength s. Such
    a part stands out of noise of variance v as ``(s + N v)(s + M v) / s`` when ``s > v sqrt(M N)``, and not otherwise
    (https://arxiv.org/abs/1103.2221).
    """
    short, long = sorted(part.shape[-2:])
    size = short * long
    beyond = 0.0
    for strength in (largest**2, mean**2 * size):
        variance = square - strength / size
        if strength > variance * size**0.5:
            spike = (strength / long + variance) * (strength + short * variance) / strength / square
            beyond = max(beyond, (spike - bulk_edge(short, long)) / tracy_widom_scale(short, long))
    return beyond
