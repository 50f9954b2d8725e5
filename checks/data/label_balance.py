"""One class outnumbers another, or stands alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Annotated, Any

import torch
from pydantic import Field
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

from debugkit import Finding, Target, Unavailable, check, fail, note, warn
from debugkit.labels import Labels
from debugkit.probes.label_use import DECLARED, LabelUse, Use
from debugkit.probes.samples import Samples
from debugkit.testing import blobs, mlp

_RISK = 0.01
_MEANT = 64
_TAGS_VARY = 10
_PER_CLASS = 3
_SHOWN = 4


@check
def label_balance(
    samples: Samples,
    target: Target,
    use: LabelUse | None,
    *,
    max_ratio: Annotated[
        float,
        Field(gt=1, description="how many samples of the largest class may come on one of the smallest"),
    ] = 10,
) -> Iterator[Finding]:
    """One class outnumbers another, or stands alone.

    Classes are counted as the loader gives them, so a sampler that balances them counts. Where the loader was
    not read to its end, the ratio is the one that the counts prove (99 % confidence), not the one they show. For
    tagged tokens the most frequent tag is the background and stays out of the ratio; for labels that can be on
    together each is held against its own share of "off", allowing more the more labels there are.

    ## Why is this bad?
    With a single class a constant answer is perfect, the loss goes to 0 at once, and nothing is learned. With
    99 : 1 the constant answer is right 99 % of the time: the loss and the accuracy look good, and the small class
    is never predicted.

    ## What to do
    A single class is nearly always a mistake on the way from the file to the loader: look at the labels there. An
    imbalance that the task has by nature is met by weights in the loss (`CrossEntropyLoss(weight=...)`,
    `BCEWithLogitsLoss(pos_weight=...)`) or by a `WeightedRandomSampler`, and by a metric per class.

    ## Known limits
    Targets of a language model or a generator, continuous targets and maps of pixels are not held to a ratio. With
    a `training_step` only what a torch loss takes as its classes counts as a label, wherever it is in the
    batch; labels in a loss written by hand are counted and not judged. A loss that weighs classes is
    recognised where the step runs on the first batch, or by its `weight` attribute.

    ## References
    - https://docs.pytorch.org/docs/stable/data.html#torch.utils.data.WeightedRandomSampler
    - Buda et al. 2018, https://arxiv.org/abs/1710.05381
    """
    for found in _labels(samples, use):
        yield from _judge(found, samples, target, max_ratio)


@dataclass(frozen=True)
class _Found:
    """Labels to judge.

    Attributes:
        labels: what was counted.
        use: what the step does with them, where that was followed.
        where: their place in the batch, where the step showed it.
    """

    labels: Labels
    use: Use | None
    where: str | None = None


def _labels(samples: Samples, use: LabelUse | None) -> Iterator[_Found]:
    """What the step takes as labels; where that was not followed, what the batch's shape suggests."""
    suggested = samples.representative
    if use is None or samples.origin == "given":
        yield _Found(suggested, use.sources.get(DECLARED) if use else None)
        return
    chosen = [
        path
        for path, one in use.sources.items()
        if one.is_label and path in samples.candidates and samples.candidates[path].total
    ]
    for path in chosen:
        yield _Found(samples.candidates[path], use.sources[path], path)
    generated = any(
        one.class_target and one.in_predictions and samples.candidates[path].kind in ("tokens", "tags")
        for path, one in use.sources.items()
        if path in samples.candidates
    )
    if not chosen:
        yield _Found(Labels("tokens") if generated else suggested, use.sources.get(DECLARED, Use()))


def _judge(found: _Found, samples: Samples, target: Target, max_ratio: float) -> Iterator[Finding]:
    labels, use = found.labels, found.use
    if labels.kind in ("none", "other"):
        raise Unavailable(
            "the batches hold no labels that can be counted; a mapping needs `labels`, a tuple a tensor at its end"
        )
    numeric = use is not None and use.numeric
    guessed = use is not None and samples.origin != "given" and not use.is_label
    if labels.kind == "values" or (numeric and (guessed or len(labels.counts or ()) > 2)):
        raise Unavailable("the targets are continuous numbers, so there are no classes to count")
    if labels.kind == "tokens" or (use is not None and use.class_target and use.in_predictions):
        yield note(f"the labels of {samples.scanned:,} samples are tokens to generate, skewed by nature")
        return
    if not labels.total:
        raise Unavailable(
            f"every label in {samples.scanned:,} samples is ignored, so there is nothing to count"
        )
    judge = _Judge(samples, found, target, max_ratio)
    if guessed or (use is None and not _is_plain(samples, labels)):
        yield judge.no_verdict()
    elif labels.kind == "multi-label":
        yield from judge.each_label()
    else:
        yield from judge.classes()


def _is_plain(samples: Samples, labels: Labels) -> bool:
    """Whether the batch's shape alone says that these are labels."""
    return samples.origin in ("given", "named") or (
        samples.origin == "pair" and labels.kind in ("classes", "multi-label")
    )


class _Judge:
    """The labels and what is needed to weigh them."""

    def __init__(self, samples: Samples, found: _Found, target: Target, max_ratio: float) -> None:
        self._complete = samples.complete
        self._labels = labels = found.labels
        self._target = target
        self._use = found.use
        self._where = found.where
        self._max_ratio = max_ratio
        self._counts = dict(sorted((labels.counts or {}).items(), key=lambda item: (-item[1], item[0])))
        self._names = _names(target.model, labels)
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
            counts = _entities(counts, background, self._target.model)
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
        count = more + less
        share = more / count
        centre = share + z * z / (2 * count)
        margin: float = z * (share * (1 - share) / count + z * z / (4 * count * count)) ** 0.5
        low = (centre - margin) / (1 + z * z / count)
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


def _ends(counts: Mapping[Any, int]) -> tuple[tuple[Any, int], tuple[Any, int]]:
    """The most and the least frequent, with their counts."""
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    return ordered[0], ordered[-1]


def _names(model: torch.nn.Module, labels: Labels) -> dict[int, str]:
    """Class names that someone gave: the labels' own, or a config's ``id2label`` without its placeholders."""
    if labels.names:
        return {index: _quotable(name) for index, name in labels.names.items()}
    table = getattr(getattr(model, "config", None), "id2label", None)
    if not isinstance(table, Mapping):
        return {}
    named = {}
    for index in labels.counts or {}:
        name = table.get(index, table.get(str(index)))
        if isinstance(name, str) and name != f"LABEL_{index}":
            named[index] = _quotable(name)
    return named


def _quotable(name: str) -> str:
    return " ".join(name.split())[:40].replace("`", "'")


def _entities(counts: Mapping[int, int], background: int, model: torch.nn.Module) -> dict[Any, int]:
    """Tag counts without the background; ``B-x`` and ``I-x`` count as one where the model names its tags."""
    table = getattr(getattr(model, "config", None), "id2label", None)
    merged: dict[Any, int] = {}
    for tag, count in counts.items():
        if tag == background:
            continue
        key: Any = tag
        if isinstance(table, Mapping) and isinstance(name := table.get(tag), str) and name[1:2] in ("-", "_"):
            key = next(other for other in counts if str(table.get(other))[1:] == name[1:])
        merged[key] = merged.get(key, 0) + count
    return merged


def _percent(share: float) -> str:
    if 0 < share < 0.01 or 0.99 < share < 1:
        return f"{share:.2%}".replace("%", " %")
    return f"{share:.0%}".replace("%", " %")


def _labelled(y: torch.Tensor, batch_size: int = 32) -> DataLoader[tuple[torch.Tensor, ...]]:
    """Inputs that show their label in the first feature."""
    x = torch.randn(len(y), 8, generator=torch.Generator().manual_seed(0))
    x[:, 0] += 3 * y.float().flatten()
    return DataLoader(TensorDataset(x, y), batch_size=batch_size, shuffle=True)


def _with_minority(samples: int, minority: int) -> torch.Tensor:
    return (torch.arange(samples) < minority).long()


def good() -> Target:
    return Target(mlp(), blobs(), torch.nn.CrossEntropyLoss())


def good_three_classes() -> Target:
    return Target(mlp(classes=3), blobs(96, classes=3), torch.nn.CrossEntropyLoss())


def bad_single_class() -> Target:
    return Target(mlp(), _labelled(torch.zeros(256, dtype=torch.long)), torch.nn.CrossEntropyLoss())


def bad_one_in_a_hundred() -> Target:
    return Target(mlp(), _labelled(_with_minority(1000, 10)), torch.nn.CrossEntropyLoss())


def bad_binary_floats() -> Target:
    loader = _labelled(_with_minority(600, 20).float().unsqueeze(1))
    return Target(mlp(classes=1), loader, torch.nn.BCEWithLogitsLoss())


def bad_label_never_on() -> Target:
    y = (torch.rand(256, 4, generator=torch.Generator().manual_seed(0)) < 0.4).float()
    y[:, 2] = 0
    x = torch.randn(256, 8, generator=torch.Generator().manual_seed(1))
    x[:, :4] += 3 * y
    return Target(
        mlp(classes=4),
        DataLoader(TensorDataset(x, y), batch_size=32, shuffle=True),
        torch.nn.BCEWithLogitsLoss(),
    )
