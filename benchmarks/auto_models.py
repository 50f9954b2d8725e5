"""Small, freshly initialised models of transformers that can take a training step, as targets."""

from __future__ import annotations

import copy
import inspect
import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import auto_text
import torch
from auto_heads import HEADS, Head, model_class, models
from auto_sizes import MEDIA_VARIANTS, UNFIT, VARIANTS, shrink
from auto_text import Sample
from groups import adamw

if TYPE_CHECKING:
    from debugkit import Target

BATCH = 8
LARGEST = 20_000_000
MOST_CANDIDATES = 24


def pairs() -> list[tuple[str, str]]:
    """Every (architecture, head) pair that transformers names."""
    return [(architecture, head) for head in HEADS for architecture in models(head)]


def build(architecture: str, head: str) -> tuple[torch.nn.Module, list[Sample]]:
    """A small model in train mode that can take a training step, and samples that it can learn.

    Raises:
        Exception: what the architecture raises with the first variant, when it can't be built small.
    """
    if architecture in UNFIT:
        raise ValueError(UNFIT[architecture])
    first: Exception | None = None
    for variant in MEDIA_VARIANTS if HEADS[head].media else VARIANTS:
        try:
            return _with_samples(_build(architecture, head, variant), HEADS[head])
        except Exception as error:
            first = first or error
            if isinstance(error, (ImportError, KeyError)):
                break
    assert first is not None
    raise first


def _with_samples(model: torch.nn.Module, head: Head) -> tuple[torch.nn.Module, list[Sample]]:
    """The model with the first samples that it takes a step on."""
    first: Exception | None = None
    for samples in itertools.islice(head.samples(model), MOST_CANDIDATES):
        try:
            with torch.random.fork_rng(devices=[]):
                loss = _loss(copy.deepcopy(model), head.collate(samples[:BATCH]), head)
                loss.backward()  # type: ignore[no-untyped-call]
            if not loss.isfinite():
                raise ValueError(f"its loss is {float(loss)}")
            return model, samples
        except Exception as error:
            first = first or error
    assert first is not None
    raise first


def _loss(model: torch.nn.Module, batch: Any, head: Head) -> torch.Tensor:
    if head.step is not None:
        return head.step(model, batch)
    if head.loss_fn is not None:
        inputs, labels = batch if isinstance(batch, tuple) else (batch, batch["labels"])
        if isinstance(inputs, Mapping):
            return head.loss_fn(model(**{k: v for k, v in inputs.items() if k != "labels"}), labels)
        return head.loss_fn(model(inputs), labels)
    return model(**batch).loss  # type: ignore[no-any-return]


def _build(architecture: str, head: str, variant: Mapping[str, Any]) -> torch.nn.Module:
    from transformers import CONFIG_MAPPING

    torch.manual_seed(0)
    config = shrink(CONFIG_MAPPING[architecture], head, variant, media=HEADS[head].media)
    kind = model_class(architecture, head, config)
    if (size := _size_of(kind, config)) > LARGEST:
        raise ValueError(f"its configuration stays large: {size / 1e6:.0f} M parameters")
    model = kind(config, **_unpooled(kind) if HEADS[head].wrap is not None else {})
    wrap = HEADS[head].wrap
    return (model if wrap is None else wrap(model)).train()


def _unpooled(kind: Any) -> dict[str, bool]:
    """What leaves out a pooler that no loss would reach."""
    return {"add_pooling_layer": False} if "add_pooling_layer" in inspect.signature(kind).parameters else {}


def _size_of(kind: Any, config: Any) -> int:
    """The number of parameters, without the memory for them."""
    with torch.device("meta"):
        model = kind(copy.deepcopy(config))
    return sum(p.numel() for p in model.parameters())


def target_of(architecture: str, head: str, *, padded: bool = False) -> Target:
    """The target of a pair.

    Args:
        architecture: the model type, such as ``bert``.
        head: a key of :data:`auto_heads.HEADS`.
        padded: pad some samples of a text head.
    """
    from debugkit import Target

    model, samples = build(architecture, head)
    if (
        padded
        and head in auto_text.MAKERS
        and samples[0].keys() == (rows := auto_text.rows(head, padded))[0].keys()
    ):
        samples = rows
    if head == "causal" and not _shifts_labels(model, samples):
        samples = auto_text.shifted(samples)
    torch.manual_seed(0)
    loader: torch.utils.data.DataLoader[Any] = torch.utils.data.DataLoader(
        samples,  # type: ignore[arg-type]
        batch_size=BATCH,
        shuffle=True,
        generator=torch.Generator().manual_seed(0),
        collate_fn=HEADS[head].collate,
    )
    return Target(
        model,
        loader,
        HEADS[head].loss_fn,
        training_step=HEADS[head].step,
        optimizer=adamw(model),
        name=f"{architecture}/{head}",
    )


def _shifts_labels(model: torch.nn.Module, samples: list[Sample]) -> bool:
    """Whether a causal model's own loss holds each output against the next label, as most do."""
    batch = torch.utils.data.default_collate(samples[:BATCH])
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        outputs = copy.deepcopy(model).eval()(**batch)
    scores, labels = outputs.logits, batch["labels"]
    if scores.shape[:2] != labels.shape:
        return True
    in_place = torch.nn.functional.cross_entropy(scores.flatten(0, 1).float(), labels.flatten())
    return abs(float(in_place - outputs.loss)) > 1e-4
