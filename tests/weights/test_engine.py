"""Many matrices side by side: the same numbers, within the bounds that were given."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from debugkit.weights.engine import Analysis, analyse, assign
from debugkit.weights.matrix import Array, Matrix, equal_parts
from debugkit.weights.ranks import Ranks
from debugkit.weights.settings import Progress, Settings


def matrix(
    name: str, *shape: int, seed: int = 0, load: Callable[[], Array] | None = None, **facts: Any
) -> Matrix:
    values = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return Matrix(name, facts.pop("kind", "linear"), shape, "float32", load or (lambda: values), **facts)


def several(count: int = 12) -> list[Matrix]:
    return [matrix(f"layers.{index}", 40 + index, 64, seed=index) for index in range(count)]


def numbers(analysis: Analysis) -> list[Any]:
    return [(layer, layer.eigenvalues.tolist()) for layer in analysis.layers]


def test_workers_and_ranks_change_nothing() -> None:
    matrices = several()
    alone = analyse(matrices, Settings(workers=1))
    assert [layer.parameter for layer in alone.layers] == [one.name for one in matrices]
    assert numbers(analyse(matrices, Settings(workers=4))) == numbers(alone)
    barrier = threading.Barrier(2)
    board: dict[int, Any] = {}

    def gatherer(rank: int) -> Callable[[Any], list[Any]]:
        def gather(mine: Any) -> list[Any]:
            board[rank] = mine
            barrier.wait(20)
            return [board[0], board[1]]

        return gather

    found: dict[int, Analysis] = {}

    def work(rank: int) -> None:
        found[rank] = analyse(matrices, Settings(workers=1, ranks=Ranks(rank, 2, gatherer(rank))))

    threads = [threading.Thread(target=work, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert numbers(found[0]) == numbers(found[1]) == numbers(alone)
    assert found[0].shares == found[1].shares
    assert sorted(name for share in found[0].shares for name in share) == sorted(one.name for one in matrices)
    assert all(len(share) == 6 for share in found[0].shares)


def test_shares_are_even_and_always_the_same() -> None:
    costs = [float(cost) for cost in (9, 1, 1, 1, 5, 5, 2, 2)]
    shares = assign(costs, 3)
    assert shares == assign(costs, 3)
    assert sorted(index for share in shares for index in share) == list(range(8))
    loads = [sum(costs[index] for index in share) for share in shares]
    assert max(loads) - min(loads) <= 1
    assert assign([], 2) == [[], []]


def test_memory_bounds_how_many_are_held() -> None:
    held, most = 0, 0
    lock = threading.Lock()

    def load() -> Array:
        nonlocal held, most
        with lock:
            held += 1
            most = max(most, held)
        time.sleep(0.01)
        with lock:
            held -= 1
        return np.ones((64, 64), np.float32) + np.eye(64, dtype=np.float32)

    matrices = [matrix(f"layers.{index}", 64, 64, load=load) for index in range(8)]
    analyse(matrices, Settings(workers=4, memory=1))
    assert most == 1
    analyse(matrices, Settings(workers=4, memory=2 * matrices[0].memory))
    assert most == 2


def test_time_is_kept_and_what_is_done_covers_the_depth() -> None:
    def load() -> Array:
        time.sleep(0.03)
        return np.eye(40, dtype=np.float32)

    matrices = [matrix(f"layers.{index}", 40, 40, load=load) for index in range(30)]
    table = matrix("table", 40, 40, kind="embedding", unjudged="embedding table")
    start = time.monotonic()
    analysis = analyse([table, *matrices], Settings(workers=1), seconds=0.4)
    assert time.monotonic() - start < 1.0
    assert 0 < analysis.analysed < 30
    done = [layer.parameter for layer in analysis.layers]
    assert "table" not in done
    assert analyse(matrices, seconds=0.0).analysed == 0


def test_progress_is_told() -> None:
    told: list[Progress] = []
    analyse(several(), Settings(workers=2, on_progress=told.append))
    assert [one.done for one in told] == list(range(1, 13))
    assert all(one.total == 12 and one.seconds_left >= 0 for one in told)
    assert told[-1].seconds_left == pytest.approx(0.0, abs=1e-6)


def test_unreadable_values_are_raised_everywhere() -> None:
    def load() -> Array:
        raise OSError("the shard ends early")

    matrices = [*several(), matrix("broken", 50, 50, load=load)]
    with pytest.raises(OSError, match="ends early"):
        analyse(matrices, Settings(workers=3))

    def other(mine: Any) -> list[Any]:
        return [({}, 0, None), mine]

    with pytest.raises(OSError, match="ends early"):
        analyse(matrices, Settings(workers=1, ranks=Ranks(1, 2, other)))


def test_unchanged_content_is_known_and_a_changed_value_is_not(tmp_path: Path) -> None:
    settings = Settings(cache=tmp_path / "spectra")
    parts = matrix("fused", 120, 64, parts=equal_parts(("query", "key", "value"), 120))
    first = analyse([*several(3), parts], settings)
    again = analyse([*several(3), parts], settings)
    assert (first.cached, again.cached) == (0, 4)
    assert numbers(first) == numbers(again)
    renamed = analyse([matrix("other", 40, 64, seed=0)], settings)
    assert renamed.cached == 1
    assert renamed.layers[0].parameter == "other"
    assert analyse([matrix("layers.0", 40, 64, seed=9)], settings).cached == 0
    assert analyse(several(3), Settings(cache=settings.cache, precision="float32")).cached == 0
    for file in (tmp_path / "spectra").iterdir():
        file.write_bytes(file.read_bytes()[:100])
    assert numbers(analyse([*several(3), parts], settings)) == numbers(first)


def test_engine_does_without_torch() -> None:
    program = "import sys, debugkit.weights.engine; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
