"""What a model gets that gives the same answer to every sample."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

from debugkit import Finding, Unavailable, note
from debugkit.data.labels import Labels
from debugkit.data.shares import percent
from debugkit.probes.samples import Samples

_UNITS = {"classes": "samples", "tags": "tokens", "pixels": "pixels", "tokens": "tokens"}


def constant_answer(samples: Samples, ignored: frozenset[int]) -> Finding:
    """A note of the accuracy and the loss of the best constant answer.

    Raises:
        Unavailable: there are no labels that can be counted.
    """
    labels = samples.labels
    if labels.kind == "multi-label":
        return _each_label(labels)
    if labels.kind == "values":
        return _mean(samples)
    counts = labels.counts if labels.kind in ("classes", "tags", "pixels") else None
    counts = _tokens(samples, ignored) if labels.kind == "tokens" else counts
    if not counts:
        raise Unavailable(
            "the batches hold no labels that can be counted; a mapping needs `labels`, a tuple a second element"
        )
    return _classes(counts, _UNITS[labels.kind], labels.kind)


def entropy(counts: Mapping[int, int]) -> float:
    """The cross-entropy of always predicting these frequencies, in nats."""
    total = sum(counts.values())
    return -sum(count / total * math.log(count / total) for count in counts.values() if count) + 0.0


def _classes(counts: Mapping[int, int], unit: str, kind: str) -> Finding:
    total, most = sum(counts.values()), max(counts.values())
    what = "token" if kind == "tokens" else "class"
    return note(
        f"over {total:,} labelled {unit}: always the most frequent {what} {percent(most / total)} right, loss "
        f"{entropy(counts):.3f} when predicting the frequencies; at random among {len(counts):,} "
        f"{percent(1 / len(counts))} right, loss {math.log(len(counts)):.3f}",
        majority=most / total,
        loss=entropy(counts),
        random=1 / len(counts),
        random_loss=math.log(len(counts)),
    )


def _each_label(labels: Labels) -> Finding:
    total = max(labels.total, 1)
    rates = [on / total for on in (labels.counts or {}).values()]
    loss = sum(entropy({0: on, 1: total - on}) for on in (labels.counts or {}).values()) / max(len(rates), 1)
    right = sum(max(rate, 1 - rate) for rate in rates) / max(len(rates), 1)
    return note(
        f"over {total:,} samples: always the more frequent state of each of {len(rates)} labels {percent(right)} right, "
        f"binary loss {loss:.3f} when predicting the frequencies; at random 50 % right, loss {math.log(2):.3f}",
        majority=right,
        loss=loss,
    )


def _mean(samples: Samples) -> Finding:
    """The spread of all target values round their mean, from the statistics of the scan."""
    sizes, means, squares = 0.0, 0.0, 0.0
    for column in samples.rows.labels:
        for value in column.values:
            finite = value.double()[value.double().isfinite()]
            sizes += finite.numel()
            means += float(finite.sum())
            squares += float((finite**2).sum())
    if not sizes:
        raise Unavailable("the targets hold no finite numbers")
    variance = max(squares / sizes - (means / sizes) ** 2, 0.0)
    return note(
        f"over {int(sizes):,} target values: always answering their mean ({means / sizes:.4g}) has a mean squared error "
        f"of {variance:.4g}",
        mean=means / sizes,
        loss=variance,
    )


def _tokens(samples: Samples, ignored: frozenset[int]) -> dict[int, int]:
    counts: Counter[int] = Counter()
    for column in samples.rows.labels:
        if not column.is_floating:
            for value in column.values:
                counts.update(value.flatten().tolist())
    return {token: count for token, count in counts.items() if token not in ignored}
