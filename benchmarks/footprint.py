"""Peak memory and wall time of one run, against the user's own training steps.

Each measurement has a process of its own. Memory is the peak of the resident set above what the imports hold, so
that it counts the model, gradients, optimizer state, activations and whatever the run adds to them. Exits 1 when
a run without the training probes takes more than the bound times the memory of the training steps.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch.utils.data import DataLoader

from debugkit import Target
from debugkit.runner import Run
from debugkit.sandbox import Sandbox  # noqa: F401  (what a run imports is no part of its memory)

BOUND = 1.5
STEPS = 3


@dataclass(frozen=True)
class Footprint:
    """What one process took.

    Attributes:
        memory: peak bytes above what the imports hold.
        seconds: wall time of the run, or of one training step.
        evidence: seconds per kind of evidence.
        slowest: seconds of the checks themselves, the slowest first.
        status: the report's status; empty for training steps.
        loud: what warned, failed or crashed.
    """

    memory: int
    seconds: float
    evidence: dict[str, float]
    slowest: dict[str, float]
    status: str
    loud: list[str]


def encoder() -> Target:
    """A six-layer encoder of 22.7 M parameters (MiniLM's shape), 16 texts of 128 tokens."""
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
    ids = _ids(128, 128, config.vocab_size)
    labels = torch.arange(len(ids)) % 2
    ids[:, 1] = 2000 + labels
    return _target(BertForSequenceClassification(config), ids, labels, 16)


def gpt2() -> Target:
    """GPT-2's shape (124 M parameters), 4 texts of 256 tokens."""
    from transformers import GPT2Config, GPT2LMHeadModel

    ids = _ids(32, 64, 50257).repeat(1, 4)
    return _target(GPT2LMHeadModel(GPT2Config()), ids, ids.clone(), 4)


def cnn() -> Target:
    """A residual network of 11 M parameters in four stages, 32 images of 64 x 64."""
    labels = torch.arange(128) % 10
    images = torch.randn(128, 3, 64, 64, generator=_generator()) + labels.view(-1, 1, 1, 1) / 5
    loader = DataLoader(list(zip(images, labels, strict=True)), batch_size=32, shuffle=True)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 64, 7, 2, 3, bias=False),
        torch.nn.BatchNorm2d(64),
        torch.nn.ReLU(),
        *(_Block(a, b, s) for a, b, s in ((64, 64, 1), (64, 64, 1), (64, 128, 2), (128, 128, 1))),
        *(_Block(a, b, s) for a, b, s in ((128, 256, 2), (256, 256, 1), (256, 512, 2), (512, 512, 1))),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(512, 10),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return Target(model, loader, torch.nn.CrossEntropyLoss(), optimizer=optimizer)


TARGETS: dict[str, Callable[[], Target]] = {"encoder": encoder, "gpt2": gpt2, "cnn": cnn}


class _Block(torch.nn.Module):
    def __init__(self, given: int, made: int, stride: int) -> None:
        super().__init__()
        self.body = torch.nn.Sequential(
            torch.nn.Conv2d(given, made, 3, stride, 1, bias=False),
            torch.nn.BatchNorm2d(made),
            torch.nn.ReLU(),
            torch.nn.Conv2d(made, made, 3, 1, 1, bias=False),
            torch.nn.BatchNorm2d(made),
        )
        self.skip = torch.nn.Conv2d(given, made, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        total: torch.Tensor = (self.body(x) + self.skip(x)).relu()
        return total


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _ids(rows: int, length: int, vocabulary: int) -> torch.Tensor:
    return torch.randint(1000, min(vocabulary, 30000), (rows, length), generator=_generator())


def _target(model: torch.nn.Module, ids: torch.Tensor, labels: torch.Tensor, batch_size: int) -> Target:
    rows: Any = [
        {"input_ids": i, "attention_mask": torch.ones_like(i), "labels": y}
        for i, y in zip(ids, labels, strict=True)
    ]
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5, weight_decay=0.0)
    return Target(model.train(), DataLoader(rows, batch_size=batch_size, shuffle=True), optimizer=optimizer)


def train(target: Target) -> Footprint:
    """Some training steps as a user writes them."""
    from debugkit.tracing.program import Program

    start = time.perf_counter()
    batches = iter(target.train_loader or ())
    for _ in range(STEPS):
        target.optimizer.zero_grad()
        Program(target).run(next(batches)).loss.backward()  # type: ignore[no-untyped-call]
        target.optimizer.step()
    return Footprint(0, (time.perf_counter() - start) / STEPS, {}, {}, "", [])


def lint(target: Target) -> Footprint:
    """The default list without the training probes."""
    report = Run(target, config={"max-cost": "backward"}).execute()
    slow = sorted(report.results, key=lambda result: -result.seconds)
    loud = [
        f"{result.check}: {result.reason or result.active[0].message}"
        for result in report.results
        if result.status in ("warn", "fail", "error")
    ]
    return Footprint(
        0,
        report.seconds,
        dict(report.evidence_seconds),
        {result.check: result.seconds for result in slow[:5]},
        report.status,
        loud,
    )


def measure(name: str, work: str) -> Footprint:
    """One piece of work in this process."""
    base = _resident()
    found = {"train": train, "lint": lint}[work](TARGETS[name]())
    return Footprint(**{**asdict(found), "memory": _peak() - base})


def _resident() -> int:
    import transformers.models.bert.modeling_bert
    import transformers.models.gpt2.modeling_gpt2  # noqa: F401

    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def in_own_process(name: str, work: str) -> Footprint:
    """The same in a fresh process."""
    command = [sys.executable, __file__, "--only", name, "--work", work]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return Footprint(**json.loads(done.stdout.splitlines()[-1]))


def show(name: str, own: Footprint, run: Footprint) -> str:
    """A table for one target."""
    lines = [
        f"{name}: {run.memory / own.memory:.2f} x the memory of a training step "
        f"({run.memory / 1e6:.0f} MB against {own.memory / 1e6:.0f} MB), "
        f"{run.seconds:.1f} s ({run.seconds / own.seconds:.1f} x a training step's {own.seconds:.2f} s), {run.status}"
    ]
    for evidence, seconds in sorted(run.evidence.items(), key=lambda item: -item[1])[:14]:
        lines.append(f"  {evidence:<28}{seconds:8.2f} s {seconds / run.seconds:6.1%}")
    lines += [f"  ! {said}" for said in run.loud]
    return "\n".join(lines)


def main() -> int:
    """Measure the targets; 1 when one is above the bound."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=TARGETS, help="one target")
    parser.add_argument(
        "--bound", type=float, default=BOUND, help="most memory, in training steps (%(default)s)"
    )
    parser.add_argument("--work", choices=("train", "lint"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        print(json.dumps(asdict(measure(arguments.only, arguments.work))))
        return 0
    above = 0
    for name in [arguments.only] if arguments.only else TARGETS:
        own, run = (in_own_process(name, work) for work in ("train", "lint"))
        above += run.memory > arguments.bound * own.memory
        print(show(name, own, run), flush=True)
    return int(above > 0)


if __name__ == "__main__":
    raise SystemExit(main())
