"""Where the values of an embedding table come from, read from the values alone."""

from __future__ import annotations

from typing import Literal

import torch

from debugkit.weights.eigenvalues import gram_eigenvalues
from debugkit.weights.marchenko_pastur import noise_distance
from debugkit.weights.spectrum import uniform_edge

Origin = Literal["random", "like an initialiser", "deterministic", "structured", "undetermined"]

_SAMPLED_ROWS = 4096
_SAMPLED_COLUMNS = 512
_FEWEST_ROWS = 32
_FEWEST_COLUMNS = 8
_FEWEST_POOLED = 32
_FEWEST_UNIFORM = 256
_USUAL_STDS = (1.0, 0.02)  # torch's embeddings, transformers' embeddings
_SIGMAS = 3.0
_KURTOSES = (3.0, 1.8, 2.367)  # normal, uniform, normal cut off at two standard deviations


@torch.no_grad()
def origin_of(table: torch.Tensor) -> Origin:
    """Where the rows of an embedding table come from.

    ``random``: every row, column and moment is that of independent normal or uniform values, and so is the
    spectrum. ``like an initialiser``: the same of a table that is too small for all but the moments of all values,
    which also have the spread of a usual initialiser; a trained table can be like that. ``deterministic``: a function of the row's number (sinusoids, one-hot rows) or a code of few
    distinct values. ``structured``: neither, as trained tables are.

    Args:
        table: ``[rows, width]``; rows of zeros (padding) are left out, of large tables a part is read.
    """
    rows = table[:: max(1, len(table) // _SAMPLED_ROWS), :_SAMPLED_COLUMNS]
    rows = rows[(rows != 0).any(1)].to(torch.float64).cpu()
    if not bool(torch.isfinite(rows).all()) or rows.numel() < _FEWEST_POOLED or min(rows.shape) < 2:
        return "undetermined"
    if _is_code(rows) or _is_function_of_position(table):
        return "deterministic"
    if len(rows) < _FEWEST_ROWS or rows.shape[1] < _FEWEST_COLUMNS:
        return "like an initialiser" if _is_like_an_initialiser(rows) else "undetermined"
    return "random" if _is_random(rows) else "structured"


def _is_code(rows: torch.Tensor) -> bool:
    return len(set(rows[:64].flatten().tolist())) <= 16


def _is_function_of_position(table: torch.Tensor) -> bool:
    """Whether the product of two rows depends on their distance alone, as it does for sinusoids."""
    first = int((table[:8] == 0).all(1).sum())
    rows = table[first : first + 64].to(torch.float64)
    if len(rows) < 4:
        return False
    gram = rows @ rows.T
    off = max(
        float((diagonal - diagonal.mean()).abs().max())
        for diagonal in map(gram.diagonal, range(len(rows) - 1))
    )
    return off <= max(1e-3, 8 * torch.finfo(table.dtype).eps) * float(gram.abs().max())


def _is_like_an_initialiser(rows: torch.Tensor) -> bool:
    """Whether all values pooled, and the energies of rows and columns, are within three standard errors of one.

    Of a usual spread: N(0, 1), N(0, 0.02), or, with values enough to see its sharp edge, a uniform distribution.
    """
    count = rows.numel()
    energy = rows.square()
    std = float(energy.mean()) ** 0.5
    if std == 0 or abs(float(rows.mean())) > _SIGMAS * std / count**0.5:
        return False
    kurtosis = float(energy.square().mean()) / std**4
    uniform = (
        (count >= _FEWEST_UNIFORM)
        and _is_near(kurtosis, 1.8, (0.73 / count) ** 0.5)
        and (abs(uniform_edge(float(rows.abs().max()), std) - 1) < 2 * count**-0.5)
    )
    normal = _is_near(kurtosis, 3.0, (24 / count) ** 0.5) and any(
        _is_near(std / usual, 1.0, (2 * count) ** -0.5) for usual in _USUAL_STDS
    )
    if not uniform and not normal:
        return False
    excess = (1.8 if uniform else 3.0) - 1
    for dim in (0, 1):
        shares = energy.mean(dim) / std**2 - 1
        expected = excess / rows.shape[dim]
        if float(shares.square().mean()) > expected * (1 + _SIGMAS * (2 / len(shares)) ** 0.5) * 1.5:
            return False
    largest = float(torch.linalg.matrix_norm(rows, 2))
    short, long = sorted(rows.shape)
    return bool(largest < std * (short**0.5 + long**0.5 + _SIGMAS))


def _is_near(value: float, expected: float, error: float) -> bool:
    return abs(value - expected) <= _SIGMAS * error


def _is_random(rows: torch.Tensor) -> bool:
    """Five moments and the spectrum, each within about six standard errors of independent values."""
    count, width = rows.shape
    energy = rows.square()
    variance = float(energy.mean())
    kurtosis = float(energy.square().mean()) / variance**2
    likely = min(_KURTOSES, key=lambda value: abs(value - kurtosis))
    if abs(kurtosis - likely) > 6 * (24 / rows.numel()) ** 0.5:
        return False
    if float(rows.mean(0).abs().max()) > 6 * (variance / count) ** 0.5:
        return False
    by_column = energy.mean(0) / variance - 1
    if float(by_column.abs().max()) > 6 * ((likely - 1) / count) ** 0.5:
        return False
    by_row = energy.mean(1) / variance - 1
    expected = (likely - 1) / width
    if abs(float(by_row.square().mean()) / expected - 1) > 6 * ((2 + 12 / width) / count) ** 0.5:
        return False
    short, long = sorted(rows.shape)
    return noise_distance(gram_eigenvalues(rows.numpy()), short, long).is_noise
