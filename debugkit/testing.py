"""Helpers for the examples and tests of checks: small learnable data sets, and the runner of examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, TensorDataset

from debugkit.check import Check
from debugkit.probes.loop_record import LoopRecord
from debugkit.registry import Registry
from debugkit.report import Report, Result
from debugkit.runner import Run

_SETTINGS = "__debugkit_settings__"

Example = TypeVar("Example", bound=Callable[[], object])


def blobs(
    samples: int = 64, features: int = 8, classes: int = 2, batch_size: int = 16, seed: int = 0
) -> DataLoader[tuple[torch.Tensor, ...]]:
    """Well separated Gaussian clusters: ``(x [batch, features] float32, y [batch] int64)``, shuffled."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(samples) % classes
    centres = torch.randn(classes, features, generator=generator) * 2
    x = centres[y] + torch.randn(samples, features, generator=generator) * 0.5
    return DataLoader(TensorDataset(x, y), batch_size=batch_size, shuffle=True)


def padded_rows(shortest: int = 3, longest: int = 11, *, mask: bool = True) -> DataLoader[Any]:
    """64 rows of token ids under 40, padded with 0 to the right: ids under 20 for class 0, others for class 1.

    Args:
        shortest: tokens of the shortest rows.
        longest: tokens of the longest ones.
        mask: whether batches have an ``attention_mask`` beside ``input_ids`` and ``labels``.
    """
    generator = torch.Generator().manual_seed(0)

    def collate(picked: list[tuple[list[int], int]]) -> dict[str, torch.Tensor]:
        wide = max(len(row) for row, _ in picked)
        ids = torch.tensor([row + [0] * (wide - len(row)) for row, _ in picked])
        batch = {"input_ids": ids, "labels": torch.tensor([label for _, label in picked])}
        return {**batch, "attention_mask": (ids != 0).long()} if mask else batch

    rows: Any = []
    for number in range(64):
        length = int(torch.randint(shortest, longest + 1, (1,), generator=generator))
        low = 1 + 19 * (number % 2)
        rows.append((torch.randint(low, low + 19, (length,), generator=generator).tolist(), number % 2))
    return DataLoader(rows, batch_size=16, shuffle=True, collate_fn=collate)


def mlp(features: int = 8, classes: int = 2, hidden: int = 32, seed: int = 0) -> torch.nn.Sequential:
    """A small classifier that gives logits ``[batch, classes]``, initialised from ``seed``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return torch.nn.Sequential(
            torch.nn.Linear(features, hidden), torch.nn.ReLU(), torch.nn.Linear(hidden, classes)
        )


def word_tokenizer(words: Sequence[str]) -> Any:
    """A tokenizer of whole words that puts ``[CLS]`` before and ``[SEP]`` after a text; needs transformers."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = {word: index for index, word in enumerate((*special, *words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    make: Any = PreTrainedTokenizerFast
    return make(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


def watched(train: Callable[[], object]) -> LoopRecord:
    """What a watch sees of a loop: an example of a check of the loop family."""
    from debugkit.watch.session import Watch

    with Watch(config={}, select=(), name=train.__name__) as watch:
        train()
    return watch.record


def settings(*values: str) -> Callable[[Example], Example]:
    """Options that an example is run with, as ``--set`` takes them: ``@settings("overfit-runs.max-steps=50")``."""

    def attach(make: Example) -> Example:
        setattr(make, _SETTINGS, values)
        return make

    return attach


@dataclass(frozen=True)
class ExampleOutcome:
    """What a check said about one of its own examples.

    Attributes:
        check: the check's id.
        example: the function's name, such as ``bad_softmax``.
        ok: whether a good example passed, or a bad one was flagged; also when a package that the example needs
            is not installed (the result is a skip then).
        result: the check's result.
    """

    check: str
    example: str
    ok: bool
    result: Result


def run_examples(check: Check, registry: Registry) -> list[ExampleOutcome]:
    """Run a check on its own examples: ``good*`` must pass, ``bad*`` must warn or fail."""
    return [judge_example(check, name, registry) for name in check.examples]


def judge_example(check: Check, name: str, registry: Registry) -> ExampleOutcome:
    """Run a check on the one of its examples that has this name."""
    try:
        result = run_example(check.examples[name], registry, select=check.id)[check.id]
    except ModuleNotFoundError as error:
        reason = f"the example needs the package `{error.name}`, which is not installed"
        return ExampleOutcome(
            check.id, name, True, Result(check=check.id, family=check.family, status="skip", reason=reason)
        )
    expected = ("pass",) if name.startswith("good") else ("warn", "fail")
    return ExampleOutcome(check.id, name, result.status in expected, result)


def run_example(make: Callable[[], object], registry: Registry, select: str = "all") -> Report:
    """The report on the target that an example makes; the global generators stay as they are."""
    chosen: tuple[str, ...] = getattr(make, _SETTINGS, ())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        target = make()
        report = Run(target, select=select, config={}, settings=chosen, registry=registry).execute()
    if report.interrupted:
        raise KeyboardInterrupt
    return report
