"""A cheap model of the data: how well a linear model on simple features tells the labels."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from debugkit.data.answers import Answers, answers_of
from debugkit.data.features import FeatureMap, Features
from debugkit.data.ridge import CrossValidation, Ridge, log_loss, one_hot, posterior
from debugkit.data.rows import Rows
from debugkit.errors import Unavailable
from debugkit.evidence import Cost
from debugkit.probes.eval_samples import EvalSamples
from debugkit.probes.samples import Samples, ignored_labels
from debugkit.target import Target

Array = np.ndarray[Any, Any]

_MOST_CLASSES = 200


@dataclass(frozen=True, eq=False)
class Split:
    """The samples of one split that the cheap model reads: labelled, and no two with the same inputs.

    Attributes:
        rows: all scanned samples.
        answers: the labels.
        features: the features of the same samples.
        codes: ``[n]`` for classes: places in :attr:`CheapModel.classes`, -1 for other classes.
        given: the labels of all samples that have one.
    """

    rows: Rows = field(repr=False)
    answers: Answers
    features: Features = field(repr=False)
    codes: Array = field(repr=False)
    given: Answers = field(repr=False)

    @property
    def repeated(self) -> int:
        """How many samples were left out since they repeat the inputs of an earlier one."""
        return len(self.given) - len(self.answers)

    def name(self, place: int) -> str:
        """How findings call a sample, such as ``train[17]``."""
        return self.rows.name(int(self.answers.samples[place]))


@dataclass(frozen=True, eq=False)
class CheapModel:
    """A linear model of the training samples, and what it says about samples that it was not fitted to.

    Attributes:
        train: the samples that it was fitted to.
        classes: ``[k]`` the classes, ascending; empty for values.
        left_out: per training sample, what a model says that was fitted to the others: probabilities ``[n, k]``,
            or values ``[n]``.
        folds: its fits, for other labels of the same samples.
        certain: whether it is certain which part of a batch is the label; otherwise it is the last part.
        evaluation: the evaluation samples, where there are any that it can read.
        predicted: what it says about them.
    """

    cost: ClassVar[Cost] = "data"
    train: Split
    classes: Array
    left_out: Array = field(repr=False)
    folds: CrossValidation = field(repr=False)
    certain: bool = True
    evaluation: Split | None = None
    predicted: Array | None = field(default=None, repr=False)

    @staticmethod
    def collect(
        target: Target,
        samples: Samples,
        evaluation: EvalSamples | None,
        *,
        min_samples: Annotated[int, Field(ge=8, description="samples without which there is no model")] = 32,
    ) -> CheapModel:
        """Fit the model.

        Raises:
            Unavailable: there is not one label per sample, too few samples, or nothing that can be read cheaply.
        """
        ignored = ignored_labels(target)
        certain = samples.origin != "last" or _is_only_candidate(samples)
        if not certain and samples.labels.kind != "classes":
            raise Unavailable(
                "which part of a batch is the label can't be told from its shape; give it the name `labels`"
            )
        given = answers_of(samples.rows, samples.labels, ignored)
        answers = _distinct(given, samples.rows)
        mapping = FeatureMap(samples.rows)
        features = mapping.read(samples.rows) if mapping else None
        if features is None:
            raise Unavailable("the inputs hold no numbers, token ids or texts that differ between samples")
        classes = answers.classes if answers.task == "classes" else np.zeros(0, dtype=np.int64)
        if answers.task == "classes" and not 2 <= len(classes) <= _MOST_CLASSES:
            raise Unavailable(f"there are {len(classes):,} classes; a cheap model takes 2 to {_MOST_CLASSES}")
        if len(answers) < max(min_samples, 4 * len(classes)):
            raise Unavailable(
                f"{len(answers):,} different labelled samples"
                f"{f' of {len(classes)} classes' if len(classes) else ''} are too few for a model of the data"
            )
        if answers.task == "values" and not float(np.ptp(answers.values)):
            raise Unavailable("all targets have the same value")
        train = _split(samples.rows, answers, features, classes, given)
        folds = CrossValidation(train.features.matrix)
        if len(classes):
            left_out = folds.probabilities(train.codes, len(classes))
        else:
            left_out = folds.values(train.answers.values)
        other = _evaluation(mapping, evaluation, ignored, classes)
        predicted = None if other is None else _predicted(train, other, len(classes))
        return CheapModel(train, classes, left_out, folds, certain, other, predicted)

    @property
    def task(self) -> str:
        """``classes`` or ``values``."""
        return self.train.answers.task

    def said(self, place: int) -> int:
        """The class that it gives to a training sample."""
        return int(self.classes[self.left_out[place].argmax()])

    @property
    def accuracy(self) -> float:
        """Share of the training samples whose class it tells from the others."""
        return float((self.left_out.argmax(1) == self.train.codes).mean())

    @property
    def majority(self) -> float:
        """Share of the largest class."""
        return float(np.bincount(self.train.codes).max() / len(self.train.codes))

    @property
    def skill(self) -> float:
        """By how many standard errors it beats always predicting the frequencies of the classes; see :func:`skill`."""
        return skill(self.left_out, self.train.codes)

    @property
    def loss(self) -> float:
        """Its cross-entropy, or the mean squared error of its values."""
        if len(self.classes):
            return log_loss(self.left_out, self.train.codes)
        return float(((self.left_out - self.train.answers.values) ** 2).mean())

    @property
    def explained(self) -> float:
        """For values: the share of their variance that it tells (R²)."""
        return 1 - self.loss / float(self.train.answers.values.var())


def _predicted(train: Split, other: Split, count: int) -> Array:
    """What a model of all training samples says about other samples."""
    ridge = Ridge(train.features.matrix)
    if not count:
        return ridge.fit(train.answers.values.reshape(-1, 1)).predict(other.features.matrix)[:, 0]
    fit = ridge.fit(one_hot(train.codes, count))
    return posterior(fit.left_out, train.codes, fit.predict(other.features.matrix))


def skill(probabilities: Array, codes: Array) -> float:
    """How surely predictions are better than a constant: the larger z-score of accuracy and of log-likelihood.

    Args:
        probabilities: ``[n, k]`` for samples that the predicting model was not fitted to.
        codes: ``[n]`` their classes, below k.
    """
    n = len(codes)
    shares = np.bincount(codes, minlength=probabilities.shape[1]) / n
    majority = float(shares.max())
    right = float((probabilities.argmax(1) == codes).mean())
    by_accuracy = (right - majority) / max((majority * (1 - majority) / n) ** 0.5, 1e-12)
    gains = np.log(np.maximum(probabilities[np.arange(n), codes], 1e-4)) - np.log(shares[codes])
    by_likelihood = float(gains.mean()) / max(float(gains.std()) / n**0.5, 1e-12)
    return float(max(by_accuracy, by_likelihood))


def _is_only_candidate(samples: Samples) -> bool:
    """Whether the last part of the batches is the only one that could be one label per sample."""
    alike = [
        path
        for path, labels in samples.candidates.items()
        if labels.kind in ("classes", "values") and labels.shape in ((), (1,))
    ]
    return alike == [f"batch{column.path}" for column in samples.rows.labels]


def _distinct(answers: Answers, rows: Rows) -> Answers:
    """The first sample of each content."""
    if len(rows.digests) != rows.count:
        return answers
    seen: set[bytes] = set()
    kept = np.ones(len(answers), dtype=bool)
    for place, sample in enumerate(answers.samples.tolist()):
        kept[place] = rows.digests[sample] not in seen
        seen.add(rows.digests[sample])
    return answers.only(kept)


def _split(rows: Rows, answers: Answers, features: Features, classes: Array, given: Answers) -> Split:
    chosen = answers.samples
    kept = Features(features.matrix[chosen], features.raw[chosen], features.columns)
    return Split(rows, answers, kept, codes_of(answers.values, classes), given)


def codes_of(values: Array, classes: Array) -> Array:
    """The place of each value among the classes, -1 for others; zeros where there are no classes."""
    if not len(classes):
        return np.zeros(len(values), dtype=np.int64)
    codes = np.minimum(np.searchsorted(classes, values), len(classes) - 1)
    return np.where(classes[codes] == values, codes, -1)


def _evaluation(
    mapping: FeatureMap, evaluation: EvalSamples | None, ignored: frozenset[int], classes: Array
) -> Split | None:
    if evaluation is None:
        return None
    try:
        answers = answers_of(evaluation.rows, evaluation.labels, ignored)
    except Unavailable:
        return None
    if (answers.task == "classes") != bool(len(classes)) or not len(answers):
        return None
    features = mapping.read(evaluation.rows)
    return None if features is None else _split(evaluation.rows, answers, features, classes, answers)
