"""What is to be answered for each sample: its one class, or its one value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch

from debugkit.data.labels import IGNORED, Labels
from debugkit.data.rows import Rows
from debugkit.errors import Unavailable

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Answers:
    """One label per sample, those that do not count left out.

    Attributes:
        task: ``classes`` or ``values``.
        path: where the batches hold the labels.
        values: ``[n]`` int64 class numbers, or float64 values.
        samples: ``[n]`` the number of each one's sample in scan order.
        names: for labels given as texts: the text of each class.
    """

    task: Literal["classes", "values"]
    path: str
    values: Array = field(repr=False)
    samples: Array = field(repr=False)
    names: Mapping[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.values)

    @property
    def classes(self) -> Array:
        """The different classes, ascending."""
        return np.unique(self.values)

    def only(self, kept: Array) -> Answers:
        """Those at ``kept`` places.

        Args:
            kept: ``[n]`` bool, or places.
        """
        return Answers(self.task, self.path, self.values[kept], self.samples[kept], self.names)


def answers_of(rows: Rows, labels: Labels, ignored: frozenset[int] = frozenset({IGNORED})) -> Answers:
    """The labels of one split, one per sample.

    Args:
        rows: the scanned samples.
        labels: what their labels are.
        ignored: class numbers that do not count.

    Raises:
        Unavailable: there is not one label per sample; the message says what there is.
    """
    if labels.kind == "none":
        raise Unavailable("the batches hold no labels; a mapping needs `labels`, a tuple a second element")
    if labels.kind not in ("classes", "values"):
        what = {"other": "can't be read as one class or value per sample"}.get(
            labels.kind, f"are {labels.kind}, not one class or value per sample"
        )
        raise Unavailable(f"the labels {what}")
    if labels.names:
        return _from_texts(rows, labels.names)
    if len(rows.labels) != 1:
        raise Unavailable(f"the batches hold {len(rows.labels)} tensors of labels, not one")
    column = rows.labels[0]
    stacked = column.stacked()
    if stacked is None or not stacked.numel():
        raise Unavailable("the labels have a shape of their own per sample")
    samples = np.asarray(column.samples)
    values = stacked.reshape(len(stacked), -1)
    if labels.kind == "classes":
        if values.shape[1] > 1:
            values = values.argmax(1, keepdim=True)
        classes = values[:, 0].long().numpy()
        kept = ~np.isin(classes, sorted(ignored))
        return Answers("classes", column.path, classes[kept], samples[kept])
    if values.shape[1] > 1:
        raise Unavailable(f"there are {values.shape[1]:,} values to predict per sample, not one")
    numbers = values[:, 0].to(torch.float64).numpy()
    kept = np.isfinite(numbers)
    return Answers("values", column.path, numbers[kept], samples[kept])


def _from_texts(rows: Rows, names: Mapping[int, str]) -> Answers:
    table = {name: index for index, name in names.items()}
    for path in reversed(rows.texts):
        texts = rows.texts[path]
        if len(texts) == rows.count and set(texts) <= table.keys():
            values = np.array([table[text] for text in texts], dtype=np.int64)
            return Answers("classes", path, values, np.arange(len(values)), names)
    raise Unavailable("the labels are texts that the scan did not keep")
