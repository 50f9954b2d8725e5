"""What watching costs: a loop under `debugkit watch` against the same loop without, in one process.

Segments of training with and without a watch take turns in one process, so that both meet the same machine; each
segment is a loop of its own over the same data, and a watched one begins with the steps that are looked at closely. The
ratio of the CPU time of two neighbours is taken apart for the first 20 steps, the very first left out, and for the
steady state after them. The preflight on the first iteration is timed apart.

    python benchmarks/overhead.py                  # the digits' CNN
    python benchmarks/overhead.py --model minilm   # a fine-tune of the reviews; needs the weights in the cache
    python benchmarks/overhead.py --log            # with metrics as JSON lines every 50 steps
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import torch

import debugkit
from debugkit.watch.session import Watch

EXAMPLES = Path(__file__).parents[1] / "examples"
EARLY = 20


def example(name: str) -> Any:
    """A program of the examples as a module."""
    sys.path.insert(0, str(EXAMPLES))
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def loop(run: debugkit.Target, steps: int) -> Iterator[float]:
    """Train; the CPU seconds of each step, its batch included."""
    batches = itertools.chain.from_iterable(iter(run.train_loader) for _ in itertools.count())
    run.model.train()
    for _ in range(steps):
        start = time.process_time()
        batch = next(batches)
        if isinstance(batch, Mapping):
            inputs = dict(batch)
            labels = inputs.pop("labels")
            loss = run.loss_fn(run.model(**inputs), labels)
        else:
            loss = run.loss_fn(run.model(batch[0]), batch[1])
        run.optimizer.zero_grad()
        loss.backward()
        run.optimizer.step()
        yield time.process_time() - start


def segment(make: Callable[[], debugkit.Target], steps: int, watched: str | None) -> list[float]:
    """The CPU seconds of each step of a new loop; ``watched`` is where metrics go, or nothing, or ``None`` without a watch."""
    run = make()
    if watched is None:
        return list(loop(run, steps))
    with Watch([run.model], [run.optimizer], log=watched or None):
        return list(loop(run, steps))


def preflight(make: Callable[[], debugkit.Target]) -> float:
    """CPU seconds that the checklist on the first iteration takes."""
    run = make()
    with Watch([run.model], [run.optimizer], preflight=True):
        return next(loop(run, 1))


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what watching a loop costs.")
    parser.add_argument("--model", choices=["cnn", "minilm"], default="cnn")
    parser.add_argument("--steps", type=int, help="steps of a segment")
    parser.add_argument("--pairs", type=int, default=10, help="segments with and without a watch")
    parser.add_argument("--log", action="store_true", help="with metrics as JSON lines")
    options = parser.parse_args()
    torch.set_num_threads(1)
    make = example("digits" if options.model == "cnn" else "reviews").target
    steps = options.steps or (400 if options.model == "cnn" else 60)
    folder = tempfile.mkdtemp()
    watched = os.path.join(folder, "metrics.jsonl") if options.log else ""
    segment(make, 10, None)
    early, steady = [], []
    for pair in range(options.pairs):
        order = [None, watched] if pair % 2 else [watched, None]
        found = {kind: segment(make, steps, kind) for kind in order}
        plain, seen = found[None], found[watched]
        early.append(sum(seen[1:EARLY]) / sum(plain[1:EARLY]))
        steady.append(sum(seen[EARLY:]) / sum(plain[EARLY:]))
        step = sum(plain[EARLY:]) / (steps - EARLY)
        print(
            f"pair {pair + 1}: {step * 1e3:.2f} ms a step, first {EARLY} {early[-1]:.3f}, then {steady[-1]:.3f}",
            flush=True,
        )
    print(f"ratio of the first {EARLY} steps {median(early):.3f}, of the steady state {median(steady):.3f}")
    print(f"preflight on the first iteration {preflight(make):.2f} s")


if __name__ == "__main__":
    main()
