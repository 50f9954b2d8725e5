"""The squared singular values of matrices: a Gram product on the short side, and its eigenvalues only."""

from __future__ import annotations

import math

import numpy as np

from debugkit.weights.matrix import Array
from debugkit.weights.pages import blocks

_BLOCK = 2**20


def widened(values: Array) -> Array:
    """Values as floats that can be computed with: the bits of bfloat16, kept as ``uint16``, become float32."""
    if values.dtype != np.uint16:
        return values
    return (values.astype(np.uint32) << 16).view(np.float32)


def gram_eigenvalues(matrices: Array, precision: str = "float64", device: str | None = None) -> Array:
    """The squared singular values of each matrix.

    Args:
        matrices: ``[..., a, b]``, any float dtype, or the bits of bfloat16; upcast in blocks.
        precision: of the products and the eigenvalues: ``float64`` or ``float32``.
        device: of torch; ``None`` for LAPACK on the CPU.

    Returns:
        ``[..., min(a, b)]`` float64, ascending, never negative; NaN where the products overflow.
    """
    *batch, rows, columns = matrices.shape
    grams = matrices.reshape(-1, rows, columns)
    found = np.stack([_eigenvalues(gram_of(one, precision, device), device) for one in grams])
    return found.reshape(*batch, min(rows, columns))


def gram_of(matrix: Array, precision: str = "float64", device: str | None = None) -> Array:
    """``W Wᵀ`` or ``WᵀW`` of a matrix ``[a, b]``, whichever is smaller, summed over blocks of the long side."""
    rows, columns = matrix.shape
    short = min(rows, columns)
    width = max(1, _BLOCK // max(1, short))
    gram: Array | None = None
    for part in blocks(matrix, width, axis=0 if rows > columns else 1):
        block = np.ascontiguousarray(widened(part), dtype=precision)
        product = _product(block, rows > columns, device)
        gram = product if gram is None else np.add(gram, product, out=gram)
    return np.zeros((short, short), precision) if gram is None else gram


def _product(block: Array, tall: bool, device: str | None) -> Array:
    if device is None:
        with np.errstate(over="ignore", invalid="ignore"):
            product: Array = block.T @ block if tall else block @ block.T
        return product
    import torch

    there = torch.from_numpy(block).to(device)
    return np.asarray((there.T @ there if tall else there @ there.T).cpu())


def _eigenvalues(gram: Array, device: str | None) -> Array:
    if not np.isfinite(gram.diagonal()).all():
        return np.full(len(gram), np.nan)
    if device is None:
        values: Array = np.linalg.eigvalsh(gram).astype(np.float64)
    else:
        import torch

        values = np.asarray(torch.linalg.eigvalsh(torch.from_numpy(gram).to(device)).cpu(), dtype=np.float64)
    return np.maximum(values, 0.0, out=values)


def rounding_floors(eigenvalues: Array, long: int, epsilon: float, precision: str = "float64") -> Array:
    """The size below which an eigenvalue is indistinguishable from the rounding of the stored values.

    Args:
        eigenvalues: ``[matrices, M]``, ascending.
        long: the long side N.
        epsilon: of the dtype in which the matrix was stored.
        precision: in which the eigenvalues were computed.

    Returns:
        One floor for each matrix.
    """
    short = eigenvalues.shape[-1]
    variance = eigenvalues.sum(-1) / (short * long)
    noise = variance * epsilon**2 / 12 * (math.sqrt(long) + math.sqrt(short)) ** 2
    computed = 1e-10 if precision == "float64" else 4e-6
    floors: Array = np.maximum(4 * noise, computed * eigenvalues[..., -1])
    return floors
