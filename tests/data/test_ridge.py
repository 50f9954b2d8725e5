"""The linear model with a closed form."""

from __future__ import annotations

import numpy as np
import pytest

from debugkit.data.ridge import CrossValidation, Ridge, log_loss, one_hot, posterior, principal


def noise(n: int, d: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d))


@pytest.mark.parametrize("shape", [(30, 5), (20, 40)])
def test_left_out_predictions_come_from_the_other_samples(shape: tuple[int, int]) -> None:
    x, y = noise(*shape), noise(shape[0], 1, seed=1)
    other = y.copy()
    other[7] += 100
    left_out = [Ridge(x, (1.0,)).fit(goals).left_out[7, 0] for goals in (y, other)]
    means = [goals.mean() - goals[np.arange(len(y)) != 7].mean() for goals in (y, other)]
    assert np.isclose(left_out[0] - means[0], left_out[1] - means[1])


def test_a_linear_relation_is_found_exactly() -> None:
    x = noise(200, 6)
    y = x @ noise(6, 2, seed=3) + 4.0
    fit = Ridge(x).fit(y)
    assert np.allclose(fit.predict(x), y, atol=1e-2)
    assert np.allclose(CrossValidation(x).values(y[:, 0]), y[:, 0], atol=1e-2)


@pytest.mark.parametrize(("n", "d", "classes"), [(54, 12, 10), (100, 300, 2), (200, 16, 5)])
def test_random_labels_are_told_no_better_than_chance(n: int, d: int, classes: int) -> None:
    told = []
    for seed in range(8):
        y = np.random.default_rng(seed).integers(0, classes, n)
        probabilities = CrossValidation(noise(n, d, seed)).probabilities(y, classes)
        told.append(float((probabilities.argmax(1) == y).mean() - np.bincount(y).max() / n))
    assert np.mean(told) < 0.02


def test_a_class_in_the_middle_is_not_masked() -> None:
    y = np.arange(300) % 3
    x = noise(300, 2) * 0.3 + 3.0 * y[:, None]
    probabilities = CrossValidation(x).probabilities(y, 3)
    assert (probabilities.argmax(1) == y).mean() > 0.98
    assert log_loss(probabilities, y) < 0.1


def test_constant_inputs_give_the_frequencies() -> None:
    y = np.array([0, 0, 1] * 20)
    probabilities = CrossValidation(np.zeros((60, 3))).probabilities(y, 2)
    assert np.allclose(probabilities.mean(0), [2 / 3, 1 / 3], atol=0.05)


def test_an_absent_class_gets_no_probability() -> None:
    scores = noise(30, 3)
    found = posterior(scores, np.arange(30) % 2, scores)
    assert np.allclose(found.sum(1), 1)
    assert not found[:, 2].any()


def test_nothing_is_random() -> None:
    x, y = noise(80, 10), np.arange(80) % 2
    before = np.random.get_state()[1].copy()
    first, second = (CrossValidation(x).probabilities(y, 2) for _ in range(2))
    assert np.array_equal(first, second)
    assert np.array_equal(before, np.random.get_state()[1])


def test_few_directions_hold_most_of_the_variance() -> None:
    x = noise(100, 3) @ noise(3, 50, seed=1)
    assert np.allclose(principal(x, 3).var(0).sum(), (x - x.mean(0)).var(0).sum())
    assert principal(x, 60) is x


def test_one_hot() -> None:
    assert one_hot(np.array([1, 0]), 3).tolist() == [[0, 1, 0], [1, 0, 0]]
