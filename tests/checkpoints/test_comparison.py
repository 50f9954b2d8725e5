from pathlib import Path

import pytest
import torch

from debugkit.checkpoints.checkpoint import Checkpoint, open_checkpoint
from debugkit.checkpoints.comparison import compare, lined_up


def saved(state: dict[str, torch.Tensor], file: Path) -> Checkpoint:
    torch.save(state, file)
    return open_checkpoint(file)


def test_what_moved_and_by_how_much(tmp_path: Path) -> None:
    torch.manual_seed(0)
    a, b = torch.randn(64, 64), torch.randn(64)
    moved = a.clone()
    moved[:16] *= 1.5
    first = saved({"a": a, "b": b, "gone": b, "c": a}, tmp_path / "1.pt")
    second = saved({"a": moved, "b": b, "new": b, "c": a[:32]}, tmp_path / "2.pt")
    found = compare(first, second)
    (move,) = found.moved
    assert (move.name, move.unchanged) == ("a", 0.75)
    assert move.distance == pytest.approx(float((moved - a).norm() / a.norm()), rel=1e-6)
    assert move.cosine == pytest.approx(
        float(torch.cosine_similarity(a.flatten(), moved.flatten(), 0)), rel=1e-5
    )
    assert (found.only_first, found.only_second, found.reshaped) == (("gone",), ("new",), ("c",))


def test_half_and_single_precision_are_compared_by_value(tmp_path: Path) -> None:
    a = torch.randn(64, 64).bfloat16()
    first = saved({"a": a}, tmp_path / "1.pt")
    second = saved({"a": a.float()}, tmp_path / "2.pt")
    assert not compare(first, second).moved


def test_names_are_lined_up_behind_a_prefix() -> None:
    bare = dict.fromkeys(("h.0.w", "h.1.w", "wte"))
    full = dict.fromkeys(("transformer.h.0.w", "transformer.h.1.w", "transformer.wte", "lm_head"))
    assert lined_up(bare, full) == {name: f"transformer.{name}" for name in bare}
    assert lined_up(full, bare) == {f"transformer.{name}": name for name in bare}
    assert lined_up(bare, bare) == {name: name for name in bare}


def test_what_became_nan_has_moved_farthest(tmp_path: Path) -> None:
    a, b = torch.randn(64, 64), torch.randn(64, 64)
    first = saved({"b": b, "a": a}, tmp_path / "1.pt")
    second = saved({"b": b * 2, "a": torch.full_like(a, float("nan"))}, tmp_path / "2.pt")
    assert [move.name for move in compare(first, second).moved] == ["a", "b"]
