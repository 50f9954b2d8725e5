"""Labels that do not fit the outputs, belong to other rows, or stand in the inputs."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset, TensorDataset

from debugkit import Target
from debugkit.testing import mlp, word_tokenizer

from . import pair

FAULTS = "https://arxiv.org/abs/1910.11015"
DEEP_CRIME = "https://doi.org/10.1145/3460319.3464825"
LEAKAGE = "https://doi.org/10.1145/2382577.2382579"
KAPOOR = "https://doi.org/10.1016/j.patter.2023.100804"
KARPATHY = "https://karpathy.github.io/2019/04/25/recipe/"
PROBLEM_TYPE = "https://huggingface.co/docs/transformers/main_classes/configuration"
IGNORE = "https://docs.pytorch.org/docs/stable/generated/torch.nn.CrossEntropyLoss.html"


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(samples: int, classes: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(classes, (samples,), generator=rng(seed))


def clusters(y: torch.Tensor, features: int = 8, spread: float = 1.0) -> torch.Tensor:
    centres = 2 * torch.randn(int(y.max()) + 1, features, generator=rng(5))
    return centres[y] + spread * torch.randn(len(y), features, generator=rng(6))


def overlapping(y: torch.Tensor, features: int = 8) -> torch.Tensor:
    x = torch.randn(len(y), features, generator=rng(7))
    x[:, :3] += 1.2 * y[:, None]
    return x


def batches(*columns: torch.Tensor, size: int = 32, shuffle: bool = True) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*columns), batch_size=size, shuffle=shuffle)


def bert(vocabulary: int = 80, **options: Any) -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        **options,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return BertForSequenceClassification(config).train()


def sentences(y: torch.Tensor, length: int = 12) -> torch.Tensor:
    """Token ids of which some are more frequent in one class."""
    ids = torch.randint(20, 80, (len(y), length), generator=rng(8))
    hinted = torch.rand(ids.shape, generator=rng(9)) < 0.25
    return torch.where(hinted, 5 + 3 * y[:, None] + ids % 3, ids)


class Rows(Dataset[Any]):
    """A list of samples, with what a data set says about its columns."""

    def __init__(self, rows: Sequence[Any], **facts: Any) -> None:
        self.rows = rows
        vars(self).update(facts)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.rows[index]


def encoded(ids: torch.Tensor, labels: torch.Tensor, size: int = 16, **facts: Any) -> DataLoader[Any]:
    rows = [
        {"input_ids": i, "attention_mask": torch.ones_like(i), "labels": y}
        for i, y in zip(ids, labels, strict=True)
    ]
    return DataLoader(Rows(rows, **facts), batch_size=size, shuffle=True)


# label-range


@pair("label-range", source=FAULTS, where="no output for label 5")
def ratings_counted_from_one(broken: bool) -> Target:
    stars = drawn(300, 5)
    x = clusters(stars)
    labels = stars + 1 if broken else stars

    def step(model: nn.Module, batch: Any) -> torch.Tensor:
        features, rating = batch
        return F.cross_entropy(model(features), rating)

    return Target(mlp(classes=5), batches(x, labels), training_step=step)


@pair("label-range", source=IGNORE, where="255")
def void_pixels_are_scored(broken: bool) -> Target:
    images = torch.randn(48, 3, 12, 12, generator=rng(0))
    masks = (images.sum(1) > 0).long()
    masks[:, :2] = 255
    loss = nn.CrossEntropyLoss() if broken else nn.CrossEntropyLoss(ignore_index=255)
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 2, 1))
    return Target(model, batches(images, masks, size=8), loss)


@pair("label-range", source="https://huggingface.co/datasets/stanfordnlp/snli", where="train[")
def pairs_without_an_agreed_label(broken: bool) -> Target:
    y = drawn(320, 3)
    labels = y.clone()
    if broken:
        labels[200::40] = -1
    model = bert(num_labels=3)
    return Target(model, encoded(sentences(y), labels))


@pair("label-range", source=PROBLEM_TYPE, where="num_labels")
def one_output_for_spam_or_not(broken: bool) -> Target:
    y = drawn(128, 2)
    labels = y.float() if broken else y
    return Target(bert(num_labels=1 if broken else 2), encoded(sentences(y), labels))


@pair("label-range", source="https://github.com/huggingface/transformers/issues/10725", where="multi-label")
def one_hot_labels_as_floats(broken: bool) -> Target:
    y = drawn(128, 3)
    labels = F.one_hot(y, 3).float() if broken else y
    return Target(bert(num_labels=3), encoded(sentences(y), labels))


@pair("label-range", source="https://github.com/huggingface/transformers/issues/12822", where="contradiction")
def entailment_in_another_order_than_the_data_set(broken: bool) -> Target:
    y = drawn(128, 3)
    own = ["contradiction", "neutral", "entailment"] if broken else ["entailment", "neutral", "contradiction"]
    features = {"labels": SimpleNamespace(names=["entailment", "neutral", "contradiction"])}
    model = bert(id2label=dict(enumerate(own)), label2id={name: i for i, name in enumerate(own)})
    return Target(model, encoded(sentences(y), y, features=features))


@pair("label-range", level="warn", source=FAULTS, where="3 to 9")
def head_of_another_data_set(broken: bool) -> Target:
    y = drawn(300, 3)
    images = torch.randn(300, 1, 10, 10, generator=rng(1)) * 0.5 + (y / 2 - 0.5).view(-1, 1, 1, 1)
    layers = [nn.Conv2d(1, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()]
    return Target(
        nn.Sequential(*layers, nn.Linear(32, 10 if broken else 3)), batches(images, y), nn.CrossEntropyLoss()
    )


@pair(
    "label-range",
    source="https://docs.pytorch.org/docs/stable/generated/torch.nn.SoftMarginLoss.html",
    where="-1 and 1",
)
def margin_on_zeros_and_ones(broken: bool) -> Target:
    y = drawn(200, 2)
    targets = y.float() if broken else 2 * y.float() - 1
    model = nn.Sequential(mlp(classes=1), nn.Flatten(0))
    return Target(model, batches(overlapping(y), targets), nn.SoftMarginLoss())


# label-noise


@pair("label-noise", source=KARPATHY, where="groups")
def inputs_and_labels_shuffled_apart(broken: bool) -> Target:
    y = drawn(400, 5)
    images = torch.randn(400, 1, 8, 8, generator=rng(2)) * 0.3
    images += torch.randn(5, 1, 8, 8, generator=rng(3))[y]
    if broken:
        images = images[torch.randperm(400, generator=rng(4))]
    model = nn.Sequential(nn.Flatten(), mlp(features=64, classes=5))
    return Target(model, batches(images, y), nn.CrossEntropyLoss())


@pair("label-noise", source=FAULTS, where="row")
def label_file_read_past_its_header(broken: bool) -> Target:
    y = drawn(500, 3)
    ids = sentences(y)
    labels = torch.cat([y[1:], y[:1]]) if broken else y
    return Target(bert(num_labels=3), encoded(ids, labels))


@pair("label-noise", source=FAULTS, where="reverse order")
def labels_listed_backwards(broken: bool) -> Target:
    y = drawn(300, 3)
    x = clusters(y, spread=1.5)
    return Target(mlp(classes=3), batches(x, y.flip(0) if broken else y), nn.CrossEntropyLoss())


@pair("label-noise", level="warn", source=DEEP_CRIME, where="train[")
def a_third_of_the_labels_replaced(broken: bool) -> Target:
    y = drawn(600, 4)
    x = clusters(y)
    replaced = torch.rand(600, generator=rng(1)) < 0.33
    if broken:
        y = torch.where(replaced, drawn(600, 4, seed=2), y)
    return Target(mlp(classes=4), batches(x, y), nn.CrossEntropyLoss())


class Reader(nn.Module):
    """A recurrent classifier of padded rows."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(80, 16, padding_idx=0)
        self.body = nn.GRU(16, 16, batch_first=True)
        self.head = nn.Linear(16, 2)

    def forward(self, ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(
            self.embed(ids), lengths, batch_first=True, enforce_sorted=False
        )
        scores: torch.Tensor = self.head(self.body(packed)[1][0])
        return scores


@pair("label-noise", source="https://discuss.pytorch.org/t/4054", where="another label than in the data set")
def texts_sorted_by_length_without_their_labels(broken: bool) -> Target:
    y = drawn(192, 2)
    lengths = torch.randint(6, 14, (192,), generator=rng(3)).tolist()
    rows = [(row[:n], label) for row, n, label in zip(sentences(y, 14), lengths, y, strict=True)]

    def collate(samples: list[Any]) -> Any:
        labels = torch.stack([label for _, label in samples])
        samples = sorted(samples, key=lambda sample: -len(sample[0]))
        if not broken:
            labels = torch.stack([label for _, label in samples])
        ids = [ids for ids, _ in samples]
        return pad_sequence(ids, batch_first=True), torch.tensor([len(row) for row in ids]), labels

    def step(model: nn.Module, batch: Any) -> torch.Tensor:
        ids, lengths, labels = batch
        return F.cross_entropy(model(ids, lengths), labels)

    return Target(
        Reader(), DataLoader(Rows(rows), batch_size=16, shuffle=True, collate_fn=collate), training_step=step
    )


@pair(
    "label-noise", source="https://github.com/scikit-learn/scikit-learn/issues/8898", where="another number"
)
def label_encoder_fitted_on_each_split(broken: bool) -> Target:
    names = ["deer", "cat", "ship", "frog"]
    y = drawn(480, 4)
    x = clusters(y)
    numbers = [2, 0, 1, 3] if broken else [0, 1, 2, 3]
    held_out = torch.tensor([numbers[label] for label in y[360:].tolist()])
    assert sorted(numbers) == list(range(len(names)))
    return Target(
        mlp(classes=4),
        batches(x[:360], y[:360]),
        nn.CrossEntropyLoss(),
        eval_loader=batches(x[360:], held_out, shuffle=False),
    )


@pair("label-noise", source=DEEP_CRIME, where="evaluation labels")
def training_labels_joined_without_a_key(broken: bool) -> Target:
    y = drawn(700, 2)
    ids = sentences(y)
    labels = y[:500]
    if broken:
        labels = labels[torch.randperm(500, generator=rng(2))]
    return Target(bert(), encoded(ids[:500], labels), eval_loader=encoded(ids[500:], y[500:]))


# label-leakage


@pair("label-leakage", source=LEAKAGE, where="[0]")
def target_still_in_the_scaled_table(broken: bool) -> Target:
    y = drawn(400, 2)
    x = overlapping(y)
    if broken:
        x[:, 5] = y
    x = (x - x.mean(0)) / x.std(0)
    return Target(mlp(), batches(x, y), nn.CrossEntropyLoss())


def walk(samples: int) -> torch.Tensor:
    steps = torch.randn(samples, generator=rng(11))
    series = [torch.tensor(0.0)]
    for step in steps[1:]:
        series.append(0.9 * series[-1] + 0.5 * step)
    return torch.stack(series)


@pair("label-leakage", source=FAULTS, where="[0]")
def window_that_ends_with_its_target(broken: bool) -> Target:
    series = walk(430)
    x = torch.stack([series[i : i + 10] for i in range(400)])
    y = series[9:409] if broken else series[10:410]

    def step(model: nn.Module, batch: Any) -> torch.Tensor:
        window, value = batch
        return F.mse_loss(model(window).squeeze(-1), value)

    return Target(mlp(features=10, classes=1), batches(x, y), training_step=step)


@pair("label-leakage", source="https://arxiv.org/abs/2009.09435", where="name their own class")
def prompt_that_holds_its_answer(broken: bool) -> Target:
    words = [f"word{i}" for i in range(40)] + ["negative", "positive", "review", "sentiment", "dull", "fine"]
    tokenizer = word_tokenizer(words)
    y = drawn(160, 2)
    fill = torch.randint(40, (160, 8), generator=rng(4))
    rows = []
    for label, numbers in zip(y.tolist(), fill.tolist(), strict=True):
        told = [f"word{i}" for i in numbers]
        if numbers[0] % 4:
            told[2] = ["dull", "fine"][label]
        answer = [["negative", "positive"][label]] if broken else []
        ids = tokenizer(" ".join(["review", *told, "sentiment", *answer]))["input_ids"]
        rows.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": label})
    names = {0: "negative", 1: "positive"}
    model = bert(len(tokenizer), id2label=names, label2id={name: i for i, name in names.items()})

    def collate(samples: list[Any]) -> Any:
        return {key: torch.tensor([sample[key] for sample in samples]) for key in samples[0]}

    loader = DataLoader(Rows(rows), batch_size=16, shuffle=True, collate_fn=collate)
    return Target(model, loader, tokenizer=tokenizer)


@pair("label-leakage", source=KAPOOR, where="pixel_values")
def mask_stacked_onto_its_image(broken: bool) -> Target:
    images = torch.randn(64, 4, 10, 10, generator=rng(0))
    masks = (images[:, 0] + images[:, 1] > 0).long()
    if broken:
        images[:, 3] = masks
    rows = [{"pixel_values": x, "labels": y} for x, y in zip(images, masks, strict=True)]
    model = nn.Sequential(nn.Conv2d(4, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 2, 1))

    def step(model: nn.Module, batch: Any) -> torch.Tensor:
        return F.cross_entropy(model(batch["pixel_values"]), batch["labels"])

    return Target(model, DataLoader(Rows(rows), batch_size=8, shuffle=True), training_step=step)


@pair("label-leakage", level="warn", source=LEAKAGE, where="value 6")
def follow_up_that_only_one_class_gets(broken: bool) -> Target:
    y = drawn(500, 3)
    x = overlapping(y)
    x[:, 6] = torch.randint(4, (500,), generator=rng(3)).float() - 1.5
    if broken:
        x[:, 6] = 2.0 * y + drawn(500, 2, seed=4) - 2.5
    return Target(mlp(classes=3), batches(x, y), nn.CrossEntropyLoss())


class Forecaster(nn.Module):
    """One prediction per step of a series."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.LSTM(1, 24, batch_first=True)
        self.head = nn.Linear(24, 1)

    def forward(self, series: torch.Tensor) -> torch.Tensor:
        steps: torch.Tensor = self.head(self.body(series)[0])
        return steps


@pair("label-leakage", source=FAULTS, where="copying")
def forecaster_that_is_asked_for_the_present(broken: bool) -> Target:
    series = walk(900)
    pieces = torch.stack([series[i * 14 : i * 14 + 13] for i in range(64)])[..., None]
    x, y = (pieces[:, :-1], pieces[:, :-1]) if broken else (pieces[:, :-1], pieces[:, 1:])
    return Target(Forecaster(), batches(x, y, size=16), nn.MSELoss())


# baselines


@pair("baselines", level="warn", source=KAPOOR, where="no mistake")
def answer_in_the_difference_of_two_columns(broken: bool) -> Target:
    y = drawn(1280, 2)
    x = overlapping(y)
    told, noise = (1.0, 0.02) if broken else (0.1, 0.4)
    x[:, 7] = x[:, 6] + told * (y - 0.5) + noise * torch.randn(1280, generator=rng(1))
    return Target(mlp(), batches(x, y), nn.CrossEntropyLoss())


@pair("baselines", level="warn", source="https://doi.org/10.1038/s42256-020-00257-z", where="no mistake")
def scanner_mark_in_the_corner(broken: bool) -> Target:
    y = drawn(1200, 2)
    images = torch.randn(1200, 1, 12, 12, generator=rng(2))
    images += 0.12 * torch.randn(1, 12, 12, generator=rng(3)) * (2 * y - 1).view(-1, 1, 1, 1)
    if broken:
        images[:, :, 9:, 9:] += 1.5 * (2 * y - 1).view(-1, 1, 1, 1)
    model = nn.Sequential(nn.Flatten(), mlp(features=144))
    return Target(model, batches(images, y), nn.CrossEntropyLoss())


@pair("baselines", level="warn", source=LEAKAGE, where="no mistake")
def texts_from_one_source_per_class(broken: bool) -> Target:
    y = drawn(1200, 2)
    ids = torch.randint(20, 80, (1200, 12), generator=rng(8))
    hinted = torch.rand(ids.shape, generator=rng(9)) < 0.1
    ids = torch.where(hinted, 5 + 3 * y[:, None] + ids % 3, ids)
    if broken:
        ids[:, ::2] = 20 + 30 * y[:, None] + (ids[:, ::2] - 20) % 30
        ids[:, 1::2] = 20 + 30 * y[:, None] + (ids[:, 1::2] - 20) % 30
    return Target(bert(), encoded(ids, y))


@pair("baselines", level="warn", source=KARPATHY, where="no mistake")
def classes_at_opposite_ends(broken: bool) -> Target:
    y = drawn(1120, 3)
    gap = 12.0 if broken else 1.6
    x = torch.randn(1120, 6, generator=rng(4))
    x[:, :2] += gap * torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 0.0]])[y]
    x = (x - x.mean(0)) / x.std(0)
    return Target(mlp(features=6, classes=3), batches(x, y), nn.CrossEntropyLoss())


@pair("baselines", level="warn", source=KAPOOR, where="is exact on 1,200 samples")
def total_beside_its_parts(broken: bool) -> Target:
    parts = torch.randn(1200, 9, generator=rng(21))
    unknown = torch.zeros(1200) if broken else 0.6 * torch.randn(1200, generator=rng(22))
    total = parts[:, :5].sum(1) / 5**0.5 + unknown
    return Target(mlp(features=9, classes=1), batches(parts, total[:, None]), nn.MSELoss())


@pair("label-leakage", level="warn", source=LEAKAGE, where="value 6")
def days_in_hospital_among_admission_data(broken: bool) -> Target:
    y = drawn(600, 2)
    x = overlapping(y)
    x[:, 6] = 0.4 * torch.randn(600, generator=rng(23))
    if broken:
        x[:, 6] += 1.5 * (2 * y - 1)
    return Target(mlp(), batches(x, y), nn.CrossEntropyLoss())


@pair("label-noise", source=DEEP_CRIME, where="stands 1 row")
def header_row_shifts_labels_of_a_trainer(broken: bool) -> Target:
    from transformers import Trainer, TrainingArguments

    y = drawn(320, 2)
    ids = sentences(y)
    labels = y.roll(1) if broken else y
    rows = [{"input_ids": i, "labels": label} for i, label in zip(ids, labels, strict=True)]
    arguments = TrainingArguments(
        tempfile.gettempdir(),
        per_device_train_batch_size=16,
        learning_rate=1e-3,
        num_train_epochs=10,
        report_to=[],
        use_cpu=True,
    )
    return Target.from_trainer(Trainer(model=bert(), args=arguments, train_dataset=Rows(rows)))
