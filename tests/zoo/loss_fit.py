"""Losses that add up wrongly, or do not fit their targets."""

from __future__ import annotations

import tempfile
from collections import Counter
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from debugkit import Target
from debugkit.testing import blobs, mlp

from . import pair
from .loss_wiring import CE_DOCS, Tagger, loader, noise, regression, tagged

BCE_DOCS = "https://docs.pytorch.org/docs/stable/generated/torch.nn.BCEWithLogitsLoss.html"


# --- loss-reduction


@pair("loss-reduction", level="warn", source=CE_DOCS, where="twice")
def losses_of_a_loop_added_up(broken: bool) -> Target:
    def step(model: nn.Module, batch: Any) -> torch.Tensor:
        x, y = batch
        total = torch.zeros(())
        for one, label in zip(model(x), y, strict=True):
            total = total + F.cross_entropy(one, label)
        return total if broken else total / len(y)

    return Target(mlp(), blobs(), training_step=step)


@pair("loss-reduction", level="warn", source="https://arxiv.org/abs/1706.02677", where="lr=0.01")
def squared_errors_summed(broken: bool) -> Target:
    model = nn.Sequential(mlp(classes=1), nn.Flatten(0))
    rate = torch.optim.SGD(model.parameters(), lr=0.01)
    total = torch.sum if broken else torch.mean
    return Target(model, regression(), lambda p, y: total((p - y) ** 2), optimizer=rate)


@pair(
    "loss-reduction",
    level="warn",
    source="https://github.com/huggingface/transformers/issues/24725",
    where="sum",
)
def sum_in_compute_loss(broken: bool) -> Target:
    from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

    class Summed(Trainer):
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
            labels = inputs.pop("labels")
            outputs = model(**inputs)
            loss = nn.CrossEntropyLoss(reduction="sum" if broken else "mean")(outputs.logits, labels)
            return (loss, outputs) if return_outputs else loss

    config = BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    ids = torch.randint(5, 40, (64, 8), generator=torch.Generator().manual_seed(0))
    ids[:, 0] = 2
    rows = [{"input_ids": row, "labels": int(row[1:4].sum()) % 2} for row in ids]
    for row in rows:
        row["input_ids"][5] = 6 + 20 * row["labels"]
    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=16, use_cpu=True, report_to=[]
    )
    return Target.from_trainer(Summed(BertForSequenceClassification(config), arguments, train_dataset=rows))


@pair("loss-reduction", level="warn", source=CE_DOCS, where="half")
def mean_divided_by_the_batch_size(broken: bool) -> Target:
    def loss(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        each = -logits.log_softmax(1)[torch.arange(len(y)), y]
        return each.mean() / y.shape[0] if broken else each.sum() / y.shape[0]

    return Target(mlp(classes=3), blobs(96, classes=3), loss)


@pair("loss-reduction", source=CE_DOCS, where="scalar")
def one_loss_per_token(broken: bool) -> Target:
    def loss(scores: torch.Tensor, tags: torch.Tensor) -> torch.Tensor:
        each = F.cross_entropy(scores.transpose(1, 2), tags, reduction="none")
        return each.mean(1) if broken else each.mean()

    return Target(Tagger(), loader(*tagged()), loss)


# --- loss-choice


@pair("loss-choice", level="warn", source="https://stackoverflow.com/q/58609115", where="one-hot")
def squared_error_on_softmax(broken: bool) -> Target:
    def step(model: nn.Module, batch: Any) -> torch.Tensor:
        x, y = batch
        if broken:
            return ((model(x).softmax(1) - torch.eye(3)[y]) ** 2).mean() + F.mse_loss(
                model(x).softmax(1), torch.eye(3)[y]
            )
        return F.cross_entropy(model(x), y)

    return Target(mlp(classes=3), blobs(96, classes=3), training_step=step)


@pair("loss-choice", level="warn", source="https://stackoverflow.com/q/39810655", where="amounts")
def regression_on_class_numbers(broken: bool) -> Target:
    def step(model: nn.Module, batch: Any) -> torch.Tensor:
        x, y = batch
        outputs = model(x)
        return F.l1_loss(outputs.squeeze(1), y.float()) if broken else F.cross_entropy(outputs, y)

    return Target(mlp(classes=1 if broken else 6), blobs(192, classes=6), training_step=step)


@pair(
    "loss-choice",
    level="warn",
    source="https://github.com/huggingface/transformers/issues/12822",
    where="exclude",
)
def topics_as_independent_labels(broken: bool) -> Target:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        num_labels=4,
        problem_type="multi_label_classification" if broken else "single_label_classification",
    )
    topic = torch.arange(96) % 4
    ids = torch.randint(10, 40, (96, 8), generator=torch.Generator().manual_seed(0))
    ids[:, 0], ids[:, 3] = 2, 5 + topic
    labels = F.one_hot(topic, 4).float() if broken else topic
    rows = [
        {"input_ids": row, "attention_mask": torch.ones_like(row), "labels": y}
        for row, y in zip(ids, labels, strict=True)
    ]
    return Target(BertForSequenceClassification(config), DataLoader(rows, batch_size=16, shuffle=True))  # type: ignore[arg-type]


def three_groups() -> tuple[torch.Tensor, torch.Tensor]:
    y = torch.tensor([0] * 40 + [1] * 150 + [2] * 60)
    x = noise(len(y), 8)
    x[:, :3] += 3 * F.one_hot(y, 3)
    return x, y


@pair("loss-choice", level="warn", source=CE_DOCS, where="another order")
def weights_in_order_of_frequency(broken: bool) -> Target:
    x, y = three_groups()
    counts = Counter(y.tolist())
    ordered = [count for _, count in counts.most_common()] if broken else [counts[c] for c in range(3)]
    weight = len(y) / (3 * torch.tensor(ordered, dtype=torch.float32))
    step = lambda model, batch: F.cross_entropy(model(batch[0]), batch[1], weight=weight)  # noqa: E731
    return Target(mlp(classes=3), loader(x, y), training_step=step)


@pair("loss-choice", level="warn", source=BCE_DOCS, where="pos_weight")
def positives_per_negative(broken: bool) -> Target:
    y = (torch.arange(320) % 8 == 0).float()
    x = noise(320, 8)
    x[:, 0] += 3 * y
    positive = y.sum()
    ratio = positive / (len(y) - positive)
    model = nn.Sequential(mlp(classes=1), nn.Flatten(0))
    return Target(model, loader(x, y), nn.BCEWithLogitsLoss(pos_weight=ratio if broken else 1 / ratio))


@pair("loss-choice", source=CE_DOCS, where="255")
def void_pixels_not_ignored(broken: bool) -> Target:
    images = noise(48, 3, 6, 6)
    classes = (images[:, 0] > 0).long() + (images[:, 1] > 0).long()
    classes[:, 0] = 255
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 1))
    loss = nn.CrossEntropyLoss() if broken else nn.CrossEntropyLoss(ignore_index=255)
    return Target(model, loader(images, classes, batch_size=8), loss)


@pair("loss-choice", level="warn", source=CE_DOCS, where="never count")
def a_real_class_is_ignored(broken: bool) -> Target:
    return Target(
        mlp(classes=3),
        blobs(96, classes=3),
        nn.CrossEntropyLoss(ignore_index=0 if broken else -100),
    )


@pair("loss-choice", level="warn", source=CE_DOCS, where="several classes are on")
def cross_entropy_on_several_labels(broken: bool) -> Target:
    x = noise(160, 8)
    y = (x[:, :4] > 0).float()
    return Target(mlp(classes=4), loader(x, y), nn.CrossEntropyLoss() if broken else nn.BCEWithLogitsLoss())
