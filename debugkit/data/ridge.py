"""A linear model with a closed form: ridge regression, and what it predicts for samples that it was not given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

_PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
_FOLDS = 5
_DIRECTIONS = 384
_SMALLEST = 1e-4


@dataclass(frozen=True, eq=False)
class Fit:
    """A fit to some targets.

    Attributes:
        left_out: ``[n, k]`` for each sample, the prediction of a model that was fitted to all others.
        weights: ``[d, k]`` of the model that was fitted to all.
        intercept: ``[k]``.
    """

    left_out: Array = field(repr=False)
    weights: Array = field(repr=False)
    intercept: Array = field(repr=False)

    def predict(self, x: Array) -> Array:
        """``[m, k]`` for inputs ``[m, d]``."""
        return np.asarray(x @ self.weights + self.intercept)


class Ridge:
    """Ridge regression on fixed inputs, decomposed once for any number of targets.

    The leave-one-out predictions are exact and cost no more than one fit; they also choose the penalty. Nothing
    is random.

    Args:
        x: ``[n, d]`` inputs.
        penalties: to choose from, relative to the mean variance along the principal directions.

    References:
        Hastie, Tibshirani, Friedman 2009, The Elements of Statistical Learning, section 7.10.
    """

    def __init__(self, x: Array, penalties: Sequence[float] = _PENALTIES) -> None:
        self._penalties = penalties
        self._mean = x.mean(0)
        centred = (x - self._mean).astype(np.float64)
        n, d = centred.shape
        values, vectors = np.linalg.eigh(centred.T @ centred if d <= n else centred @ centred.T)
        kept = values > max(float(values[-1]), 1e-300) * 1e-9 if len(values) else values > 0
        self._values, vectors = values[kept], vectors[:, kept]
        roots = np.sqrt(self._values)
        if d <= n:
            self._right, self._left = vectors, centred @ vectors / roots
        else:
            self._left, self._right = vectors, centred.T @ vectors / roots
        self._squares = self._left**2

    def fit(self, y: Array) -> Fit:
        """Fit targets ``[n, k]`` with the penalty whose leave-one-out errors are smallest.

        The mean of the targets is the one of all samples in every prediction: the mean of the others alone would
        say what was left out.
        """
        n, mean = len(y), y.mean(0)
        inside = self._left.T @ (y - mean)
        best: tuple[float, Array, Array] | None = None
        scale = float(self._values.mean()) if len(self._values) else 1.0
        for penalty in self._penalties:
            shrink = self._values / (self._values + penalty * scale)
            residuals = y - mean - self._left @ (shrink[:, None] * inside)
            leverage = np.minimum(self._squares @ shrink + 1 / n, 1 - 1e-6)
            errors = residuals / (1 - leverage)[:, None]
            if best is None or float((errors**2).mean()) < best[0]:
                best = (float((errors**2).mean()), errors, shrink)
        assert best is not None
        _, errors, shrink = best
        weights = self._right @ ((shrink / np.sqrt(self._values))[:, None] * inside)
        shift = (y - mean) / max(n - 1, 1)
        return Fit(y - errors + shift, weights, mean - self._mean @ weights)


def one_hot(classes: Array, count: int) -> Array:
    """``[n, count]`` float64 from class numbers ``[n]``."""
    return np.eye(count)[classes]


def posterior(scores: Array, classes: Array, new: Array) -> Array:
    """Class probabilities by linear discriminant analysis of the scores of a linear model.

    A regression on one-hot targets with this on top gives the discriminant analysis of its inputs: no class in
    the middle is masked by its neighbours.

    Args:
        scores: ``[n, k]`` known samples.
        classes: ``[n]`` their classes, each below k.
        new: ``[m, k]`` samples to judge.

    Returns:
        ``[m, k]``.

    References:
        Hastie, Tibshirani, Buja 1994, https://doi.org/10.1080/01621459.1994.10476866
    """
    count = scores.shape[1]
    hot = one_hot(classes, count)
    sizes = hot.sum(0)
    means = (hot.T @ scores) / np.maximum(sizes, 1)[:, None]
    inner = scores - means[classes]
    spread = inner.T @ inner / len(scores)
    level = max(float(np.trace(spread)) / count, 1e-12)
    precision = np.linalg.inv(spread + np.eye(count) * level * 1e-2)
    heights = new @ precision @ means.T - 0.5 * np.einsum("ij,jk,ik->i", means, precision, means)
    with np.errstate(divide="ignore"):
        heights = heights + np.log(sizes / sizes.sum())
    heights -= heights.max(1, keepdims=True)
    odds = np.exp(heights)
    return np.asarray(odds / odds.sum(1, keepdims=True))


class CrossValidation:
    """Predictions for each sample by a linear model that was fitted without it and a fifth of the others.

    Args:
        x: ``[n, d]`` inputs; of many, the directions in which they vary most are used.
    """

    def __init__(self, x: Array) -> None:
        x = principal(x, _DIRECTIONS)
        fold = np.random.default_rng(0).permutation(len(x)) % _FOLDS
        self._x = x
        self._parts = [(fold != part, fold == part) for part in range(min(_FOLDS, len(x)))]
        self._models = [Ridge(x[kept]) for kept, _ in self._parts]

    def values(self, y: Array) -> Array:
        """``[n]`` predictions for targets ``[n]``."""
        found = np.empty(len(y))
        for model, (kept, held) in zip(self._models, self._parts, strict=True):
            found[held] = model.fit(y[kept, None]).predict(self._x[held])[:, 0]
        return found

    def one_part(self, classes: Array, count: int) -> tuple[Array, Array]:
        """The probabilities and the classes of one fifth of the samples alone, for a first look."""
        kept, held = self._parts[0]
        fit = self._models[0].fit(one_hot(classes[kept], count))
        return posterior(fit.left_out, classes[kept], fit.predict(self._x[held])), classes[held]

    def probabilities(self, classes: Array, count: int) -> Array:
        """``[n, count]`` for class numbers ``[n]`` below ``count``."""
        found = np.empty((len(classes), count))
        for model, (kept, held) in zip(self._models, self._parts, strict=True):
            fit = model.fit(one_hot(classes[kept], count))
            found[held] = posterior(fit.left_out, classes[kept], fit.predict(self._x[held]))
        return found


def principal(x: Array, most: int) -> Array:
    """``[n, at most most]`` the coordinates along the directions of most variance."""
    if x.shape[1] <= most:
        return x
    centred = (x - x.mean(0)).astype(np.float64)
    _, vectors = np.linalg.eigh(centred.T @ centred)
    return np.asarray(centred @ vectors[:, ::-1][:, :most])


def log_loss(probabilities: Array, classes: Array) -> float:
    """Mean negative log-probability of the classes, none counted as less likely than one in ten thousand."""
    return float(-np.log(np.maximum(probabilities[np.arange(len(classes)), classes], _SMALLEST)).mean()) + 0.0
