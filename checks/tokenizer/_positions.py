"""Lengths against the positions that a model has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from debugkit import Finding, fail
from debugkit.data.rows import Rows
from debugkit.probes.table_reads import TableReads
from debugkit.probes.token_ids import TokenIds
from debugkit.weights.input_embedding import input_embedding, is_trained

_FREQUENCIES = "inv_freq"


def too_long(
    reads: TableReads | None, splits: Sequence[Rows], ids: TokenIds | None, model: torch.nn.Module
) -> Iterator[Finding]:
    """Rows that are longer than the positions of the model."""
    said = False
    for read in reads.positions if reads is not None else ():
        assert read.positions is not None
        limit, path = read.positions.limit, read.positions.path
        for rows in splits:
            samples, sizes = _lengths(rows, path, ids, read.positions.counts_padding)
            over = np.flatnonzero(sizes > limit)
            if ids is not None and ids.path == path and ids.rows is rows and (ids.lengths > limit).any():
                over = np.flatnonzero(ids.lengths > limit)
                samples = ids.samples.tolist()
            if len(over) and not said:
                said = True
                yield fail(
                    f"`{path}` has up to {int(sizes.max()):,} places and `{read.table}` positions for {limit:,}: "
                    f"{len(over):,} of {len(sizes):,} samples are longer than the model, and the step raises",
                    where=rows.name(samples[int(over[0])], path),
                    location=read.location,
                    hint=f"cut them (`truncation=True, max_length={limit}`), or give the model more positions",
                    longest=int(sizes.max()),
                    positions=limit,
                    rows=len(over),
                )
    if not said:
        yield from _past_training(ids, model)


def _lengths(
    rows: Rows, path: str, ids: TokenIds | None, counts_padding: bool
) -> tuple[Sequence[int], np.ndarray[Any, Any]]:
    """The samples that have a column, and the length of each."""
    if ids is not None and ids.path == path and ids.rows is rows and not counts_padding:
        return ids.samples.tolist(), ids.lengths
    column = rows.columns.get(path)
    if column is None or column.reduced:
        return [], np.array([], int)
    sizes = [value.shape[0] if value.ndim else 0 for value in column.values]
    return list(column.samples), np.array(sizes, int)


def _past_training(ids: TokenIds | None, model: torch.nn.Module) -> Iterator[Finding]:
    """Rotary positions beyond those that the configuration names."""
    limit = rotary_limit(model)
    if ids is None or limit is None:
        return
    lengths = _counted(ids)
    over = np.flatnonzero(lengths > limit)
    if not len(over):
        return
    trained = is_trained(input_embedding(model))
    yield fail(
        f"`{ids.path}` has up to {int(lengths.max()):,} tokens and `config.max_position_embeddings` is {limit:,} "
        f"({len(over):,} of {len(lengths):,} rows): nothing raises, "
        + (
            "and the model was never trained on the positions beyond it"
            if trained
            else "and what serves the model later refuses such rows"
        ),
        where=ids.name(int(over[0])),
        hint=f"cut the rows to {limit:,} tokens, or set the positions in the configuration"
        + (" and scale them (`rope_parameters`)" if trained else ""),
        longest=int(lengths.max()),
        positions=limit,
        rows=len(over),
    )


def _counted(ids: TokenIds) -> np.ndarray[Any, Any]:
    """How far the positions of each row go: several texts in one row may each begin at 0."""
    for path, column in ids.rows.columns.items():
        if path.rpartition(".")[2] == "position_ids" and len(column.maximum) == len(ids.ids):
            found: np.ndarray[Any, Any] = column.maximum + 1
            return found
    return ids.lengths


def rotary_limit(model: torch.nn.Module) -> int | None:
    """The positions of a model with rotary ones, stretched as its configuration says; ``None`` for other models."""
    if not any(name.rpartition(".")[2] == _FREQUENCIES for name, _ in model.named_buffers()):
        return None
    config: Any = getattr(model, "config", None)
    if callable(getter := getattr(config, "get_text_config", None)):
        config = getter()
    limit = getattr(config, "max_position_embeddings", None)
    if not isinstance(limit, int):
        return None
    found = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    scaled = [part for part in (found, *_values(found)) if isinstance(part, dict) and "factor" in part]
    for part in scaled:
        before = part.get("original_max_position_embeddings") or limit
        limit = max(limit, int(float(part["factor"] or 1) * before))
    dynamic = any("dynamic" in str(part.get("rope_type", part.get("type"))) for part in scaled)
    return None if dynamic else limit


def _values(mapping: Any) -> list[Any]:
    return list(mapping.values()) if isinstance(mapping, dict) else []
