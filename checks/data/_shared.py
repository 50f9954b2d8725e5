"""Samples of the evaluation split that training sees too, by what they hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from debugkit.data.chance import Contents, step_hashes
from debugkit.data.near import Match, near_matches
from debugkit.data.nearest import matrices, noisy_copies
from debugkit.data.rows import Rows

from ._passages import edited_copies
from ._repeats import is_toy

_FEWEST_STEPS = 8
_MOST_WINDOWS = 1024
_MOST_OTHERS = 4096


@dataclass(frozen=True, eq=False)
class Shared:
    """What the splits share.

    Attributes:
        count: how many evaluation samples were compared.
        same: pairs of an evaluation sample and a training sample with the same inputs.
        by_chance: how many more pairs chance may explain.
        edited: pairs whose texts differ by a few words.
        noisy: pairs whose numbers differ by a little noise.
        windows: pairs that are one sequence, seen from places a few steps apart.
        is_toy: whether both splits are a handful of samples, many times each.
    """

    count: int
    same: Sequence[tuple[int, int]]
    by_chance: int
    edited: Sequence[tuple[int, int]]
    noisy: Sequence[tuple[int, int]]
    windows: Sequence[tuple[int, int]]
    is_toy: bool


def shared_paths(train: Rows, evaluation: Rows) -> tuple[str, ...] | None:
    """The keys to compare the splits by; ``None`` where they hold different ones."""
    paths = [path for path in evaluation.content if path in train.content]
    extra = {*train.content} ^ {*evaluation.content}
    if not paths or not all(_is_small(train, path) and _is_small(evaluation, path) for path in extra):
        return None
    return tuple(paths)


def find_shared(train: Rows, evaluation: Rows, paths: Sequence[str], *, same_labels: bool) -> Shared:
    """Compare every evaluation sample with every training sample.

    Args:
        train: training samples.
        evaluation: evaluation samples.
        paths: the keys to compare by.
        same_labels: whether nearly equal texts need the same labels too.
    """
    contents = Contents([evaluation, train], paths)
    places: dict[bytes, int] = {}
    for sample, key in enumerate(contents.keys[1]):
        places.setdefault(key, sample)
    pairs = [(sample, places[key]) for sample, key in enumerate(contents.keys[0]) if key in places]
    firsts: dict[int, int] = {}
    for sample, place in pairs:
        firsts.setdefault(place, sample)
    explained = dict(
        zip(firsts, contents.by_chance([(0, sample) for sample in firsts.values()]).tolist(), strict=True)
    )
    same = [(sample, place) for sample, place in pairs if not explained[place]]
    found = {sample for sample, _ in pairs}
    rest = [sample for sample in range(evaluation.count) if sample not in found]
    others = sorted(places.values())
    near = edited_copies([evaluation, train], paths, [rest, others], same_labels=same_labels)
    return Shared(
        count=evaluation.count,
        same=same,
        by_chance=len(pairs) - len(same),
        edited=_pairs(near, "copy"),
        noisy=_noisy(train, evaluation, paths),
        windows=_pairs(near, "window") or _moved(train, evaluation, paths, rest),
        is_toy=is_toy(len({*contents.keys[0], *contents.keys[1]}), train.count + evaluation.count),
    )


def _is_small(rows: Rows, path: str) -> bool:
    """Whether a key is missing, or holds a single value per sample."""
    if path in rows.texts:
        return False
    return path not in rows.columns or all(shape in ((), (1,)) for shape in rows.columns[path].shapes)


def _pairs(matches: Sequence[Match], relation: str) -> list[tuple[int, int]]:
    return [(match.row, match.other) for match in matches if match.relation == relation]


def _noisy(train: Rows, evaluation: Rows, paths: Sequence[str]) -> list[tuple[int, int]]:
    tables = matrices([train, evaluation], paths)
    return [] if tables is None else noisy_copies(tables[1], tables[0])


def _moved(train: Rows, evaluation: Rows, paths: Sequence[str], rest: Sequence[int]) -> list[tuple[int, int]]:
    """Windows of numbers that overlap: steps along the first or the last dimension that come again, moved."""
    for path in paths:
        stacks = [
            rows.columns[path].stacked() if path in rows.columns else None for rows in (evaluation, train)
        ]
        mine, theirs = stacks
        if (
            mine is None
            or theirs is None
            or mine.shape[1:] != theirs.shape[1:]
            or not mine.is_floating_point()
        ):
            continue
        if mine.ndim == 2:
            mine, theirs = mine.unsqueeze(2), theirs.unsqueeze(2)
        if mine.ndim != 3:
            continue
        rows = [*rest][:_MOST_WINDOWS]
        for steps in (mine, mine.transpose(1, 2)):
            others = theirs if steps is mine else theirs.transpose(1, 2)
            if steps.shape[1] < _FEWEST_STEPS:
                continue
            found = near_matches(
                list(step_hashes(steps[rows])),
                list(step_hashes(others[:_MOST_OTHERS])),
                width=1 if steps.shape[2] > 2 else 3,
                common=2 * steps.shape[1],
            )
            if moved := [(rows[m.row], m.other) for m in found if m.relation == "window"]:
                return moved
    return []
