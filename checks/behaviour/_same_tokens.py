"""What a model that does not know where a token stands can't get right."""

from __future__ import annotations

from collections import defaultdict

import torch

from debugkit.probes.supervision import Supervision
from debugkit.probes.token_ids import TokenIds


def alike_tokens(supervision: Supervision) -> tuple[int, int]:
    """Rows in which the same token has different answers at two places, and rows with answers."""
    found = rows = 0
    for row in supervision.rows:
        answers: dict[int, set[int | None]] = defaultdict(set)
        for token, label, counts in zip(row.tokens, row.labels, row.supervised, strict=True):
            if counts:
                answers[token].add(label)
        rows += bool(answers)
        found += any(len(labels) > 1 for labels in answers.values())
    return found, rows


def alike_rows(ids: TokenIds) -> tuple[int, int]:
    """Rows that hold the tokens of another row in another order and have another label, and all rows."""
    labels = [c for c in ids.rows.labels if len(c.values) == len(ids.ids) == ids.rows.count]
    labels = [c for c in labels if all(value.numel() == 1 for value in c.values)]
    if len(labels) != 1:
        return 0, 0
    bags: dict[tuple[int, ...], set[tuple[tuple[int, ...], float]]] = defaultdict(set)
    for number, (tokens, label) in enumerate(zip(ids.ids, labels[0].values, strict=True)):
        content = tokens[int(ids.starts[number]) : int(ids.stops[number])].tolist()
        bags[tuple(sorted(content))].add((tuple(content), float(torch.as_tensor(label).reshape(-1)[0])))
    found = 0
    for rows in bags.values():
        if len({label for _, label in rows}) > 1 and len({order for order, _ in rows}) > 1:
            found += len(rows)
    return found, len(ids.ids)
