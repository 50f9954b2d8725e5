"""Nearly equal rows: edited copies, overlapping windows, and what merely shares a passage."""

from __future__ import annotations

import numpy as np
import pytest

from debugkit.data.near import is_edited, is_window, near_matches
from debugkit.data.nearest import noisy_copies
from debugkit.data.phrases import Phrases

GENERATOR = np.random.default_rng(0)


def texts(count: int, length: int = 60, vocabulary: int = 5000) -> list[np.ndarray]:
    return [*GENERATOR.integers(0, vocabulary, (count, length))]


def edited(row: np.ndarray) -> np.ndarray:
    return np.concatenate([[7], row[:12], [8], row[13:]])


def test_a_copy_with_a_few_tokens_changed_is_found() -> None:
    rows = texts(50)
    rows.append(edited(rows[3]))
    (match,) = near_matches(rows)
    assert (match.row, match.other, match.relation) == (50, 3, "copy")


def test_copies_are_found_in_other_rows() -> None:
    others = texts(50)
    (match,) = near_matches([*texts(3), edited(others[4])], others)
    assert (match.row, match.other) == (3, 4)


def test_another_question_about_the_same_passage_is_no_copy() -> None:
    (passage,) = texts(1, 100)
    rows = [np.concatenate([question, passage]) for question in texts(8, 8)]
    assert not near_matches(rows)


def test_a_prompt_that_all_share_does_not_count() -> None:
    (prompt,) = texts(1, 100)
    assert not near_matches([np.concatenate([prompt, question]) for question in texts(60, 12)])


def test_windows_of_one_text_are_told_from_copies() -> None:
    text = np.concatenate(texts(1, 200))
    matches = near_matches([text[:64], text[5:69]])
    assert [match.relation for match in matches] == ["window"]


def test_unrelated_and_short_rows_do_not_match() -> None:
    assert not near_matches(texts(200))
    assert not near_matches(texts(50, 4, 3))
    assert not near_matches([])


@pytest.mark.parametrize(
    ("one", "other", "found"),
    [
        ([1, 2, 3, 4, 5, 6], [1, 2, 9, 4, 5, 6], True),
        ([1, 2, 3, 4, 5, 6], [1, 2, 4, 5, 6], True),
        ([1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6, 7, 8], True),
        ([1, 2, 3, 4, 5, 6], [1, 9, 9, 9, 9, 6], False),
        ([1, 2, 3, 4], [1, 2, 3, 4, 5, 6, 7, 8], False),
    ],
)
def test_edits_are_short(one: list[int], other: list[int], found: bool) -> None:
    assert is_edited(one, other) is found


def test_a_window_moves_along_one_sequence() -> None:
    row = np.arange(20)
    assert is_window(row, row + 3)
    assert is_window(row + 3, row)
    assert not is_window(row, row)
    assert not is_window(row, row + 15)
    assert not is_window(row, np.arange(19))


def test_copies_with_noise_leave_a_gap() -> None:
    rows = GENERATOR.standard_normal((200, 6)).astype(np.float32)
    noisy = rows[:20] + 1e-3 * GENERATOR.standard_normal((20, 6)).astype(np.float32)
    fresh = GENERATOR.standard_normal((40, 6)).astype(np.float32)
    found = noisy_copies(np.concatenate([fresh, noisy]), rows)
    assert found == [(40 + number, number) for number in range(20)]


@pytest.mark.parametrize("dimensions", [1, 2, 3, 8])
def test_dense_data_has_no_noisy_copies(dimensions: int) -> None:
    rows = GENERATOR.standard_normal((1500, dimensions)).astype(np.float32)
    assert len(noisy_copies(rows[:500], rows[500:])) <= 5


def test_points_on_a_curve_are_no_noisy_copies() -> None:
    place = np.sort(GENERATOR.random(1500)) * 12
    curve = np.stack([np.cos(place) * place, np.sin(place) * place, place], 1).astype(np.float32)
    order = GENERATOR.permutation(1500)
    assert not noisy_copies(curve[order[:300]], curve[order[300:]])


def test_a_row_is_counted_in_phrases_of_other_rows() -> None:
    rows = [np.array([1, 2, 3, 4]), np.array([5, 6, 7]), np.array([1, 2, 6, 7])]
    phrases = Phrases(rows)
    assert phrases.count(rows[2], 2, 9) == 2
    assert phrases.count(rows[2], None, 9) == 1
    assert phrases.count(np.array([9, 9, 1, 2]), None, 9) == 3
    assert phrases.count(rows[0], 0, 2) == 2
