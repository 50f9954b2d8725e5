"""Rows that hold several documents: what positions, boundaries and masks say about them."""

from __future__ import annotations

from collections.abc import Mapping

import torch

_SHORTEST = 2


def documents(given: Mapping[str, torch.Tensor], rows: int, length: int) -> tuple[torch.Tensor, str] | None:
    """The document of each token, as a packed batch declares it.

    It is declared by positions that start again, by cumulative lengths, by a mask that numbers its documents, or by a
    mask between positions that falls into blocks.

    Args:
        given: the tensors of the model's call by name.
        rows: the number of rows.
        length: the number of tokens of a row.

    Returns:
        ``[rows, length]`` whole numbers, -1 outside any document, and the name of what says so; ``None`` where
        nothing says that some row holds more than one document.
    """
    for name, tensor in given.items():
        last = name.rpartition(".")[2]
        if tensor.layout is not torch.strided:
            continue
        values = tensor.detach().cpu()
        found = None
        if values.shape[-2:] == (length, length) and values.ndim in (2, 3, 4):
            found = _by_blocks(values, rows, length)
        elif values.is_floating_point() or values.is_complex():
            continue
        elif "seq" in last and values.ndim == 1:
            found = _by_ends(values.long(), rows, length)
        elif values.shape == (rows, length) and "pos" in last:
            found = _by_positions(values.long(), _content(given, rows, length))
        elif values.shape == (rows, length) and values.dtype != torch.bool:
            if "mask" in last:
                found = _by_numbers(values.long())
            elif "doc" in last or "seq_idx" in last:
                found = _by_numbers(values.long() + 1)
        if found is not None and bool((found.amax(1) > 0).any()):
            return found, name
    return None


def _content(given: Mapping[str, torch.Tensor], rows: int, length: int) -> torch.Tensor:
    for name, tensor in given.items():
        if tensor.shape == (rows, length) and "attention_mask" in name:
            return tensor.detach().cpu() != 0
    return torch.ones(rows, length, dtype=torch.bool)


def _by_positions(positions: torch.Tensor, content: torch.Tensor) -> torch.Tensor | None:
    """Runs that count up by one from the same start."""
    steps = positions.diff(dim=1)
    inside = content[:, 1:] & content[:, :-1]
    first = torch.gather(positions, 1, content.long().argmax(1, keepdim=True))
    again = (positions[:, 1:] == first) & (steps < 0)
    if not bool(((steps == 1) | again | ~inside).all()):
        return None
    starts = torch.cat([torch.zeros_like(content[:, :1]), again & inside], dim=1)
    found = torch.where(content, starts.long().cumsum(1), -1)
    return found if _long_enough(found) else None


def _by_ends(ends: torch.Tensor, rows: int, length: int) -> torch.Tensor | None:
    """Cumulative lengths from 0 to the number of all tokens."""
    if (
        len(ends) < 3
        or int(ends[0]) != 0
        or int(ends[-1]) != rows * length
        or not bool((ends.diff() > 0).all())
    ):
        return None
    number = torch.bucketize(torch.arange(rows * length), ends[1:], right=True).reshape(rows, length)
    return number - number[:, :1]


def _by_numbers(mask: torch.Tensor) -> torch.Tensor | None:
    """A mask that is 1 in the first document, 2 in the next, and 0 at padding."""
    content = mask > 0
    inside = content[:, 1:] & content[:, :-1]
    steps = mask.diff(dim=1)
    if int(mask.max()) < 2 or int(mask.min()) < 0 or not bool(((steps == 0) | (steps == 1) | ~inside).all()):
        return None
    first = torch.where(content, mask, mask.max()).amin(1, keepdim=True)
    return torch.where(content, mask - first, -1)


def _by_blocks(mask: torch.Tensor, rows: int, length: int) -> torch.Tensor | None:
    """Groups of neighbouring positions none of which may look at another group's."""
    allowed = mask if mask.dtype == torch.bool else (mask > -1e4 if mask.is_floating_point() else mask != 0)
    if mask.is_floating_point() and not bool((mask < -1e4).any()):
        return None
    while allowed.ndim > 3:
        allowed = allowed.any(1)
    allowed = allowed if allowed.ndim == 3 else allowed[None]
    allowed = allowed | allowed.transpose(-1, -2)
    content = allowed.any(-1)
    found = torch.full(content.shape, -1)
    for row in range(len(allowed)):
        number, farthest = -1, -1
        for place in content[row].nonzero().flatten().tolist():
            if place > farthest:
                number += 1
            found[row, place] = number
            farthest = max(farthest, int(allowed[row, place].nonzero().max()))
    if len(found) not in (1, rows) or not _long_enough(found):
        return None
    return found.expand(rows, length).clone()


def _long_enough(found: torch.Tensor) -> bool:
    """Whether some row holds two documents of two tokens and more."""
    for row in found:
        sizes = row[row >= 0].bincount()
        if int((sizes >= _SHORTEST).sum()) > 1:
            return True
    return False
