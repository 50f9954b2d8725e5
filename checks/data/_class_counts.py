"""Counted labels, and whether one class among them outnumbers another or stands alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch.utils.data import WeightedRandomSampler

from debugkit import Finding, Target, fail, note, warn
from debugkit.data.class_names import class_names, entity_counts
from debugkit.data.labels import Labels
from debugkit.data.shares import lower_bound, percent
from debugkit.probes.label_use import Use
from debugkit.probes.samples import Samples

_RISK = 0.01
_MEANT = 64
_TAGS_VARY = 10
_PER_CLASS = 3
_SHOWN = 4


@dataclass(frozen=True)
class FoundLabels:
    """Labels to judge.

    Attributes:
        labels: what was counted.
        use: what the step does with them, where that was followed.
        where: their place in the batch, where the step showed it.
    """

    labels: Labels
    use: Use | None
    where: str | None = None


class ClassCounts:
    """The counts of the labels and what is needed to weigh them."""

    def __init__(self, samples: Samples, found: FoundLabels, target: Target, max_ratio: float) -> None:
        self._complete = samples.complete
        self._labels = labels = found.labels
        self._target = target
        self._use = found.use
        self._where = found.where
        self._max_ratio = max_ratio
        self._counts = dict(sorted((labels.counts or {}).items(), key=lambda item: (-item[1], item[0])))
        self._names = class_names(target.model, labels)
        per_object = found.where is not None and "[]" in found.where
        unit = {"tags": "tagged tokens", "pixels": "pixels"}.get(
            labels.kind, "objects" if per_object else "samples"
        )
        unit = unit.removesuffix("s") if labels.total == 1 else unit
        spread = "randomly drawn " if samples.spread is not None else ""
        self._seen = f"{labels.total:,} {spread}{unit}{'' if self._complete or spread else ' scanned'}"

    def no_verdict(self) -> Finding:
        """What was counted, where the step does not say that it is a label."""
        if len(self._counts) == 1:
            said = f"the only class in {self._seen} is {self._name(next(iter(self._counts)))}"
        else:
            said = self._summary()
        if self._use is None:
            why = "what the step does with it was not followed, so it may be no label"
        elif self._use.used:
            why = "no loss of the step was seen to take it as its classes"
        else:
            why = "the loss does not depend on it"
        return note(f"{said}; {why}", classes=len(self._counts))

    def classes(self) -> Iterator[Finding]:
        """One class per sample, token or pixel."""
        if len(self._counts) == 1:
            yield from self._single()
            return
        if self._labels.kind == "pixels":
            yield note(
                f"{self._summary()}; pixels are not held to a ratio",
                where=self._where,
                classes=len(self._counts),
            )
            return
        counts = self._counts
        if self._labels.kind == "tags":
            background, *_ = counts
            counts = entity_counts(self._target.model, counts, background)
        if len(counts) < 2 or sum(counts.values()) < _PER_CLASS * len(counts):
            yield note(self._summary(), where=self._where, classes=len(self._counts))
            return
        (largest, most), (smallest, least) = _ends(counts)
        ratio = most / least
        allowed = self._max_ratio * (_TAGS_VARY if self._labels.kind == "tags" else 1)
        if self._at_least(most, least, len(counts)) <= allowed:
            yield note(self._summary(), where=self._where, classes=len(self._counts), ratio=round(ratio, 2))
        elif self._compensated:
            yield note(
                f"{self._summary()}: {ratio:.3g} : 1, which the loss compensates for by its weights",
                where=self._where,
                ratio=ratio,
            )
        else:
            share = most / sum(counts.values())
            always = f"; always answering {self._name(largest)} is right {_percent(share)} of the time"
            yield warn(
                f"{self._name(largest)} outnumbers {self._name(smallest)} {ratio:.3g} : 1 ({most:,} and {least:,} of "
                f"{self._seen}){always if self._labels.kind == 'classes' else ''}",
                where=self._where,
                hint=self._lever(),
                ratio=ratio,
                largest=most,
                smallest=least,
                total=self._labels.total,
            )

    def each_label(self) -> Iterator[Finding]:
        """Labels that can be on together."""
        total, width = self._labels.total, len(self._counts)
        enough = total >= _MEANT and (self._complete or total >= 1000)
        constant = [label for label, on in self._counts.items() if on in (0, total)]
        if len(constant) == width and (enough or (self._complete and total > 1)):
            on = sum(1 for label in constant if self._counts[label])
            yield from self._one_class(
                f"all {width} labels are the same in {self._seen} ({on} on, {width - on} off)"
            )
            return
        allowed = self._max_ratio * max(1, width - 1)
        odd = {}
        for label, on in self._counts.items():
            more, less = max(on, total - on), min(on, total - on)
            if (enough and not less) or (less and self._at_least(more, less, width) > allowed):
                odd[label] = on
        shares = [on / total for on in self._counts.values()]
        spread = f"{width} labels, on in {_percent(min(shares))} to {_percent(max(shares))} of {self._seen}"
        if not odd or self._compensated:
            weighed = "; the loss compensates for it by its weights" if odd else ""
            yield note(spread + weighed, where=self._where, labels=width)
            return
        shown = [f"{self._name(label)} is on in {on:,}" for label, on in list(odd.items())[:_SHOWN]]
        rest = f" and {len(odd) - _SHOWN} more" if len(odd) > _SHOWN else ""
        one = len(odd) == 1
        yield warn(
            f"{', '.join(shown)}{rest} of {self._seen}: a constant answer for {'it' if one else 'them'} is almost "
            "never wrong",
            where=self._where,
            hint=f"check how {'this label is' if one else 'these labels are'} made; if it is the nature of the task, "
            "pass `pos_weight` to the loss and judge by a metric per label",
            labels=len(odd),
            total=total,
        )

    def _single(self) -> Iterator[Finding]:
        only = next(iter(self._counts))
        said = f"the only class in {self._seen} is {self._name(only)}"
        if not (self._complete and self._labels.total >= 2) and self._labels.total < _MEANT:
            yield note(f"{said}: too few to judge", where=self._where)
            return
        yield from self._one_class(said)

    def _one_class(self, said: str) -> Iterator[Finding]:
        if self._use is not None and not (self._use.used and self._use.alone):
            why = (
                "another loss of the step has other targets"
                if self._use.used
                else "the loss does not depend on it"
            )
            yield note(f"{said}; {why}", where=self._where)
            return
        make = warn if self._use is None and self._target.training_step is not None else fail
        yield make(
            f"{said}: a constant answer is perfect and nothing can be learned",
            where=self._where,
            hint="look at the labels where the data set makes them: the file, the column, the filter or the mapping",
            total=self._labels.total,
        )

    def _at_least(self, more: int, less: int, choices: int) -> float:
        """The ratio ``more / less`` that the counts prove: itself for all data, else a Wilson bound.

        Among ``choices`` the smallest was picked, so the risk is shared among them (Bonferroni).
        """
        if self._complete:
            return more / less
        z = NormalDist().inv_cdf(1 - _RISK / choices)
        low = lower_bound(more / (more + less), more + less, z)
        return low / (1 - low)

    @property
    def _compensated(self) -> bool:
        if self._use is not None:
            return self._use.reweighted
        weights = [getattr(self._target.loss_fn, name, None) for name in ("weight", "pos_weight")]
        return any(isinstance(weight, torch.Tensor) for weight in weights)

    def _lever(self) -> str:
        sampler = getattr(self._target.train_loader, "sampler", None)
        if isinstance(sampler, WeightedRandomSampler):
            return (
                "check the weights of the `WeightedRandomSampler`: one per sample, 1 / the count of its class"
            )
        weighted = "`pos_weight`" if len(self._counts) == 2 and self._floating else "`weight`"
        return f"pass class weights to the loss ({weighted}) or draw with a `WeightedRandomSampler`; judge per class"

    @property
    def _floating(self) -> bool:
        return bool(self._use and any("binary" in loss for loss in self._use.losses))

    def _summary(self) -> str:
        shares = [count / self._labels.total for count in self._counts.values()]
        if len(shares) <= _SHOWN:
            each = " / ".join(_percent(share) for share in shares)
        else:
            each = f"{_percent(shares[0])} to {_percent(shares[-1])} each"
        noun = {"tags": "tags"}.get(self._labels.kind, "classes")
        return f"{len(shares)} {noun}, {each} in {self._seen}"

    def _name(self, label: int) -> str:
        return f"`{self._names[label]}`" if label in self._names else f"`{label}`"


def _ends(counts: Mapping[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """The most and the least frequent, with their counts."""
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    return ordered[0], ordered[-1]


def _percent(share: float) -> str:
    return percent(share, both_ends=True)
