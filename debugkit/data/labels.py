"""Labels: what the targets of a data set are, decided by their values and by the inputs beside them."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch

from debugkit.data.batch import LABEL_KEYS, input_ids, split, tensors

Kind = Literal["classes", "multi-label", "tags", "tokens", "pixels", "values", "other", "none"]

IGNORED = -100
_MOST_LABELS = 10_000
_MOST_TAGS = 200
_FEWEST_TOKENS = 10
_WIDE = 32
_SAME = 0.8
_MOST_COLUMNS = 1000
_DEEPEST = 4
_MOST_PARTS = 64


@dataclass(frozen=True, eq=False)
class Labels:
    """The labels of the samples that were scanned.

    Attributes:
        kind: ``classes`` (one per sample), ``multi-label`` (each on or off), ``tags`` (one class per token),
            ``tokens`` (targets of a language model, or sequences to generate), ``pixels`` (one class per
            position of a map), ``values`` (continuous), ``other`` (nothing that can be counted) or ``none``.
        values: ``[samples]`` int64 for classes (ignored ones left out), ``[samples, labels]`` bool for
            multi-label; ``None`` otherwise.
        counts: for classes, tags and pixels: how often each occurs; for multi-label: how often each is on.
        shape: how the loader gives them, without the batch: ``()``, ``(1,)``, ``(labels,)``, ...
        names: for labels given as texts: the text of each class.
    """

    kind: Kind
    values: torch.Tensor | None = None
    counts: Mapping[int, int] | None = None
    shape: tuple[int, ...] = ()
    names: Mapping[int, str] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """How many samples (classes, multi-label), tokens or positions were counted."""
        if self.values is not None:
            return len(self.values)
        return sum((self.counts or {}).values())

    @property
    def skewed(self) -> bool:
        """Whether one class occurs at least twice as often as another, or there is only one."""
        if self.kind == "multi-label" and self.counts:
            rates = [on / max(self.total, 1) for on in self.counts.values()]
            return min(min(rate, 1 - rate) for rate in rates) < 1 / 3
        found = list((self.counts or {}).values())
        return bool(found) and (len(found) == 1 or max(found) >= 2 * min(found))


class LabelReader:
    """Collects the labels of batch after batch in a compact form.

    Args:
        ignored: label values that do not count.
    """

    def __init__(self, ignored: frozenset[int] = frozenset({IGNORED})) -> None:
        self._ignored = ignored
        self._forms: Counter[str] = Counter()
        self._vectors: list[torch.Tensor] = []
        self._rows: list[torch.Tensor] = []
        self._counts: Counter[int] = Counter()
        self._hidden: Counter[int] = Counter()
        self._supervised = self._positions = 0
        self._same = self._compared = 0
        self._vocabulary: set[int] = set()
        self._texts: Counter[str] = Counter()
        self._beside_input = True
        self._binary = True
        self._shape: tuple[int, ...] = ()

    def add(self, batch: Any) -> None:
        """Take in the labels of one batch."""
        inputs, given = split(batch)
        self.add_labels(given, inputs, input_ids(batch))

    def add_labels(self, given: Any, inputs: Any, ids: torch.Tensor | None) -> None:
        """Take in the labels of one batch.

        Args:
            given: the labels as the loader gives them.
            inputs: what else is in the batch.
            ids: the token ids ``[batch, length]`` among them.
        """
        if given is None:
            self._forms["none"] += 1
            return
        if isinstance(given, (list, tuple)) and given and all(isinstance(text, str) for text in given):
            self._forms["texts"] += 1
            self._texts.update(given)
            return
        labels = as_tensor(given)
        if labels is None or not labels.numel() or labels.is_complex():
            self._forms["other"] += 1
            return
        self._shape = tuple(labels.shape[1:])
        copied = labels.is_floating_point() and _is_reconstruction(labels, inputs)
        labels = _squeezed(labels)
        if copied or not _integral(labels):
            self._forms["values"] += 1
        elif labels.ndim == 1:
            self._forms["vector"] += 1
            self._vectors.append(labels.double() if labels.is_floating_point() else labels.long())
            self._read_vocabulary(inputs)
        elif labels.ndim == 2:
            self._add_rows(labels, inputs, ids)
        elif labels.is_floating_point() and not _is_binary(labels):
            self._forms["values"] += 1
        else:
            self._add_map(labels)

    def read(self) -> Labels:
        """The labels of all batches so far."""
        if not self._forms:
            return Labels("none")
        form = self._forms.most_common(1)[0][0]
        if self._forms["values"]:
            form = "values"
        if form == "vector":
            return self._read_vector()
        if form == "rows":
            return self._read_rows()
        if form == "texts":
            return self._read_texts()
        if form == "map":
            return Labels("pixels", counts=self._countable(), shape=self._shape)
        return Labels({"values": "values", "none": "none"}.get(form, "other"), shape=self._shape)  # type: ignore[arg-type]

    def _add_rows(self, labels: torch.Tensor, inputs: Any, ids: torch.Tensor | None) -> None:
        binary = _is_binary(labels, self._ignored)
        same_shape = ids is not None and tuple(ids.shape) == tuple(labels.shape)
        if labels.is_floating_point() and not binary:
            self._forms["values"] += 1
            return
        if binary and same_shape and _is_mask(labels):
            self._forms["other"] += 1
            return
        self._forms["rows"] += 1
        self._binary &= binary
        self._beside_input &= not labels.is_floating_point() and _beside(labels, inputs)
        if binary and labels.shape[1] <= _MOST_LABELS:
            self._rows.append(labels.to(torch.int8))
        labels = labels.long()
        self._count(labels)
        self._read_vocabulary(inputs)
        if ids is not None and same_shape:
            self._compare(labels, ids.detach().cpu())

    def _read_vocabulary(self, inputs: Any) -> None:
        """The whole numbers among the inputs, which are tokens or items if labels are from the same set."""
        for _, tensor in tensors(inputs):
            if tensor.dtype in (torch.int64, torch.int32) and len(self._vocabulary) < _MOST_LABELS:
                self._vocabulary.update(_tally(tensor.detach().cpu()))

    def _add_map(self, labels: torch.Tensor) -> None:
        self._forms["map"] += 1
        if labels.shape[1] > 1 and _is_binary(labels) and bool((labels.sum(1) == 1).all()):
            labels = labels.long().argmax(1)
        self._count(labels.long())

    def _count(self, labels: torch.Tensor) -> None:
        self._counts.update(_tally(labels))

    def _compare(self, labels: torch.Tensor, ids: torch.Tensor) -> None:
        """Hold labels against the input ids at every plausible shift, as language models align them."""
        supervised = labels != IGNORED
        self._supervised += int(supervised.sum())
        self._positions += labels.numel()
        length = labels.shape[1]
        hits = []
        for shift in (-1, 0, 1, 2):
            here = slice(max(0, -shift), length - max(0, shift))
            there = slice(max(0, shift), length - max(0, -shift))
            counted = supervised[:, here]
            hits.append((int((labels[:, here] == ids[:, there])[counted].sum()), int(counted.sum())))
        same, compared = max(hits, key=lambda pair: pair[0] / max(pair[1], 1))
        self._same += same
        self._compared += compared
        self._hidden.update(_tally(ids[supervised]))

    def _read_vector(self) -> Labels:
        found = torch.cat([vector.double() for vector in self._vectors])
        floating = any(vector.is_floating_point() for vector in self._vectors)
        kept = found[~torch.isin(found, torch.tensor(sorted(self._ignored), dtype=found.dtype))].long()
        distinct = set(kept.tolist())
        two_sided = distinct <= {-1, 1}
        if (floating and not (distinct <= {0, 1} or two_sided)) or (
            min(distinct, default=0) < 0 and not two_sided
        ):
            return Labels("values", shape=self._shape)
        if self._are_input_tokens(distinct):
            return Labels("tokens", shape=self._shape)
        return Labels("classes", kept, Counter(kept.tolist()), self._shape)

    def _read_rows(self) -> Labels:
        counts = self._countable()
        if self._is_language_model(counts) or self._are_input_tokens(set(counts)):
            return Labels("tokens", shape=self._shape)
        same_width = len({rows.shape[1] for rows in self._rows}) == 1
        if self._binary and self._rows and same_width and not self._beside_input:
            rows = torch.cat(self._rows)
            if rows.shape[1] > 1 and bool((rows >= 0).all()) and bool((rows.long().sum(1) == 1).all()):
                classes = rows.argmax(1)
                return Labels("classes", classes, Counter(classes.tolist()), self._shape)
            on = (rows == 1).long().sum(0).tolist()
            return Labels("multi-label", rows == 1, dict(enumerate(on)), self._shape)
        if self._beside_input and len(counts) <= _MOST_TAGS:
            return Labels("tags", counts=counts, shape=self._shape)
        return Labels("tokens", shape=self._shape)

    def _read_texts(self) -> Labels:
        """Texts are class names where they recur."""
        if 2 * len(self._texts) > self._texts.total():
            return Labels("other")
        names = dict(enumerate(sorted(self._texts)))
        counts = {index: self._texts[name] for index, name in names.items()}
        values = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(list(counts.values())))
        return Labels("classes", values, counts, names=names)

    def _are_input_tokens(self, distinct: set[int]) -> bool:
        """Whether the labels are from the same set as the whole numbers among the inputs."""
        shared = len(distinct & self._vocabulary) / max(len(distinct | self._vocabulary), 1)
        return len(distinct) >= _FEWEST_TOKENS and shared >= _SAME

    def _is_language_model(self, counts: Mapping[int, int]) -> bool:
        if self._compared and self._same >= _SAME * self._compared and len(counts) > 1:
            return True
        masked = sum(self._hidden.values())
        sparse = self._supervised <= self._positions / 2
        return bool(masked) and sparse and max(self._hidden.values()) >= masked / 2 and len(counts) > 1

    def _countable(self) -> dict[int, int]:
        return {value: count for value, count in self._counts.items() if value not in self._ignored}


def are_named(batch: Any) -> bool:
    """Whether a batch gives its labels under one of the usual names."""
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return not {*batch._fields}.isdisjoint(LABEL_KEYS)
    return not isinstance(batch, (tuple, list)) and split(batch)[1] is not None


def tensors_by_path(batch: Any) -> dict[str, list[torch.Tensor]]:
    """Every tensor of a batch by its place, such as ``batch[1]``, ``batch.y`` or ``batch[1][].labels``.

    Mappings of one sample each, as detection has them, share a place per key; attributes of objects count.
    """
    found: dict[str, list[torch.Tensor]] = {}
    for path, tensor in _walk(batch, "batch", _DEEPEST):
        found.setdefault(path, []).append(tensor)
    return found


def countable(found: list[torch.Tensor]) -> bool:
    """Whether tensors at one place could be labels that can be counted: whole numbers, at most a row per sample."""
    return all(_may_be_labels(tensor) for tensor in found)


def joined(found: list[torch.Tensor]) -> torch.Tensor:
    """The tensors at one place as one."""
    return found[0] if len(found) == 1 else torch.cat([tensor.detach().cpu().flatten() for tensor in found])


def _walk(value: Any, path: str, depth: int) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield path, value
        return
    if not depth or isinstance(value, (str, bytes, type, torch.nn.Module)):
        return
    parts: list[tuple[str, Any]] = []
    if isinstance(value, Mapping):
        parts = [(f"{path}.{key}", item) for key, item in value.items()]
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        parts = [(f"{path}.{name}", item) for name, item in zip(value._fields, value, strict=True)]
    elif isinstance(value, (list, tuple)):
        per_sample = bool(value) and all(isinstance(item, Mapping) for item in value)
        shown = value if per_sample else value[:_MOST_PARTS]
        parts = [
            (f"{path}[]" if per_sample else f"{path}[{index}]", item) for index, item in enumerate(shown)
        ]
    elif dataclasses.is_dataclass(value):
        parts = [(f"{path}.{one.name}", getattr(value, one.name, None)) for one in dataclasses.fields(value)]
    elif isinstance(attributes := getattr(value, "__dict__", None), dict):
        parts = [(f"{path}.{name}", item) for name, item in attributes.items()]
    for place, item in parts:
        yield from _walk(item, place, depth - 1)


def _may_be_labels(tensor: torch.Tensor) -> bool:
    if tensor.layout is not torch.strided or tensor.is_meta or tensor.is_complex() or not tensor.numel():
        return False
    if tensor.ndim > 2 and tensor.shape[1:].count(1) < tensor.ndim - 2:
        return False
    if not tensor.is_floating_point():
        return True
    return tensor.numel() <= _MOST_COLUMNS * max(len(tensor) if tensor.ndim else 1, 1) and _integral(tensor)


def as_tensor(labels: Any) -> torch.Tensor | None:
    """Labels as one tensor on the CPU; ``None`` for dicts, texts and ragged lists."""
    if isinstance(labels, torch.Tensor):
        if labels.layout is not torch.strided or labels.is_meta:
            return None
        tensor = labels.detach().cpu()
        return tensor.reshape(1) if tensor.ndim == 0 else tensor
    if isinstance(labels, (np.ndarray, np.generic)) and labels.dtype.kind in "biuf":
        return as_tensor(torch.as_tensor(np.asarray(labels)))
    if isinstance(labels, (bool, int, float)):
        return torch.tensor([labels])
    if isinstance(labels, (list, tuple)) and labels:
        if all(isinstance(label, (bool, int, float)) for label in labels):
            return torch.tensor(labels)
        if all(isinstance(label, torch.Tensor) and label.shape == labels[0].shape for label in labels):
            return torch.stack([label.detach().cpu() for label in labels])
    return None


def _tally(values: torch.Tensor) -> dict[int, int]:
    """How often each value occurs."""
    found, counts = np.unique(values.numpy(), return_counts=True)
    return dict(zip(found.tolist(), counts.tolist(), strict=True))


def _squeezed(labels: torch.Tensor) -> torch.Tensor:
    """``[B, 1]`` and ``[B, 1, H, W]`` as ``[B]`` and ``[B, H, W]``."""
    while labels.ndim > 1 and labels.shape[1] == 1:
        labels = labels.squeeze(1)
    return labels


def _integral(labels: torch.Tensor) -> bool:
    return not labels.is_floating_point() or bool((labels.isfinite() & (labels == labels.round())).all())


def _is_binary(labels: torch.Tensor, ignored: frozenset[int] = frozenset()) -> bool:
    fine = (labels == 0) | (labels == 1)
    for value in ignored:
        fine |= labels == value
    return bool(fine.all())


def _is_mask(labels: torch.Tensor) -> bool:
    """Whether every row is ones then zeros, or zeros then ones, as an attention mask is."""
    return bool((labels.long().diff(dim=1).abs().sum(1) <= 1).all()) and bool((labels == 1).any(1).all())


def _is_reconstruction(labels: torch.Tensor, inputs: Any) -> bool:
    """Whether the labels are an input, or have the shape of a wide one."""
    if labels.ndim < 2:
        return False
    alike = [t for _, t in tensors(inputs) if t.is_floating_point() and t.shape == labels.shape]
    wide = labels[0].numel() > _WIDE
    return any(wide or torch.equal(t.detach().cpu().to(labels.dtype), labels) for t in alike)


def _beside(labels: torch.Tensor, inputs: Any) -> bool:
    """Whether there is one label per token of some input: ids ``[B, T]`` or features ``[B, T, F]``."""
    for _, tensor in tensors(inputs):
        same = tensor.ndim >= 2 and tuple(tensor.shape[:2]) == tuple(labels.shape)
        if same and (tensor.ndim == 3 or (tensor.ndim == 2 and not tensor.is_floating_point())):
            return True
    return False
