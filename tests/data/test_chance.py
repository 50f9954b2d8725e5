"""Which twins are to be expected, and which are copies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from debugkit.data.chance import Contents, step_hashes
from debugkit.data.rows import RowReader, Rows


def rows_of(batch: Any) -> Rows:
    reader = RowReader("train")
    reader.add(batch)
    return reader.read(complete=True)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def whole(high: int, *shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(seed))


def blank_images() -> torch.Tensor:
    images = random(200, 3, 8, 8)
    images[::5] = torch.tensor([-2.1, -2.0, -1.8]).reshape(3, 1, 1)
    return images


def boards() -> torch.Tensor:
    """Positions of a game, a few moves from the same beginning."""
    board = torch.zeros(64)
    board[::4] = 1
    games = board.repeat(300, 1)
    for number, (start, end) in enumerate(
        zip(whole(16, 300).tolist(), whole(3, 300, seed=1).tolist(), strict=True)
    ):
        if number % 4:
            games[number, 4 * start] = 0
            games[number, 4 * start + 1 + end] = 1
    return games


def progressions() -> torch.Tensor:
    start, step = whole(40, 400, 1), whole(5, 400, 1, seed=1) + 1
    return (start + step * torch.arange(12)) % 40


def templates() -> list[str]:
    amounts, names = whole(9, 300).tolist(), whole(5, 300, seed=1).tolist()
    return [
        f"please send {a} euros to the account of person {n} by tomorrow"
        for a, n in zip(amounts, names, strict=True)
    ]


def explained(values: Any) -> list[bool]:
    """Whether each content that occurs several times may do so by chance."""
    rows = rows_of((values, torch.zeros(len(values))))
    contents = Contents([rows], rows.content)
    groups: dict[bytes, list[int]] = {}
    for sample, key in enumerate(contents.keys[0]):
        groups.setdefault(key, []).append(sample)
    chosen = [(0, group[0]) for group in groups.values() if len(group) > 1]
    assert chosen
    return contents.by_chance(chosen).tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "values",
    [
        whole(2, 300, 6).float(),
        whole(97, 2000, 2),
        (random(400, 1) * 10).round(),
        torch.eye(12)[whole(12, 400)],
        (random(600, 2) * 20).round() / 20,
        blank_images(),
        boards(),
        progressions(),
        templates(),
        ["ok", "yes please", "ok", "no", "yes please"] * 20,
    ],
    ids=[
        "truth table", "pairs of ids", "one rounded number", "one-hot", "grid", "blank", "boards", "progressions",
        "templates", "short texts",
    ],
)  # fmt: skip
def test_twins_of_what_holds_little_are_expected(values: Any) -> None:
    assert sum(explained(values)) >= 0.8 * len(explained(values))


def words(count: int) -> list[str]:
    return [" ".join(f"w{word}" for word in row) for row in whole(400, count, 9).tolist()]


@pytest.mark.parametrize(
    "make",
    [
        lambda: random(100, 8),
        lambda: random(100, 2),
        lambda: random(100, 3, 8, 8),
        lambda: whole(500, 100, 16),
        lambda: words(100),
        lambda: torch.cat([random(100, 2), torch.eye(4)[whole(4, 100)]], 1),
    ],
    ids=["table", "points", "images", "tokens", "texts", "with categories"],
)
def test_copies_are_no_coincidence(make: Callable[[], Any]) -> None:
    values = make()
    copied = values[:20]
    doubled = values + copied if isinstance(values, list) else torch.cat([values, copied])
    assert not any(explained(doubled))


def test_steps_with_equal_values_have_equal_hashes() -> None:
    values = random(2, 5, 3)
    values[1, 0] = values[0, 4]
    hashes = step_hashes(values)
    assert hashes.shape == (2, 5)
    assert hashes[1, 0] == hashes[0, 4]
    assert len(set(hashes.flatten().tolist())) == 9
