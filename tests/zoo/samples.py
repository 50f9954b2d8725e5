"""Samples that repeat, leak, hold no numbers, or do not fit each other."""

from __future__ import annotations

import math
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset, TensorDataset
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from debugkit import Target
from debugkit.testing import mlp

from . import pair

GITHUB = "https://github.com"
DEDUPLICATION = "https://arxiv.org/abs/2107.06499"
LEAKAGE = "https://doi.org/10.1016/j.patter.2023.100804"


def table(samples: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """``([samples, 8], [samples])``: two overlapping clusters, in random order."""
    generator = torch.Generator().manual_seed(seed)
    y = (torch.arange(samples) % 2)[torch.randperm(samples, generator=generator)]
    x = torch.randn(samples, 8, generator=generator) + 0.5 * (2 * y[:, None] - 1)
    return x / x.std(0), y


def shuffled(data: Any, size: int = 16, **options: Any) -> DataLoader[Any]:
    return DataLoader(data, batch_size=size, shuffle=True, **options)


def classify(train: Any, evaluation: Any = None, model: nn.Module | None = None) -> Target:
    held_out = None if evaluation is None else DataLoader(evaluation, batch_size=16)
    return Target(model or mlp(), shuffled(train), nn.CrossEntropyLoss(), eval_loader=held_out)


def reviews(count: int, seed: int = 0) -> tuple[list[str], list[int]]:
    """Texts of 16 to 24 words, and whether they praise."""
    choose = random.Random(seed)
    words = [
        "".join(choose.choice("abdeiklmnorstu") for _ in range(choose.randint(3, 8))) for _ in range(300)
    ]
    tone = (["dreadful", "bland", "broken", "slow"], ["lovely", "crisp", "sturdy", "quick"])
    texts = []
    for number in range(count):
        text = choose.choices(words, k=choose.randint(14, 21))
        for _ in range(3):
            text.insert(choose.randrange(len(text)), choose.choice(tone[number % 2]))
        texts.append(" ".join(text))
    return texts, [number % 2 for number in range(count)]


class Reader(nn.Module):
    """Two classes from the words of texts, hashed."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.EmbeddingBag(1000, 16)
        self.head = nn.Linear(16, 2)

    def forward(self, texts: Sequence[str]) -> torch.Tensor:
        ids = [[sum(map(ord, word)) * len(word) % 1000 for word in text.split()] for text in texts]
        starts = torch.tensor([0, *(len(row) for row in ids[:-1])]).cumsum(0)
        return self.head(self.words(torch.tensor([one for row in ids for one in row]), starts))


def read(train: Sequence[Any], evaluation: Sequence[Any] | None = None) -> Target:
    held_out = None if evaluation is None else DataLoader(evaluation, batch_size=16)  # type: ignore[arg-type]
    return Target(Reader(), shuffled(train), nn.CrossEntropyLoss(), eval_loader=held_out)


class Clips(Dataset[dict[str, Any]]):
    """Sounds that are cut from their files when they are asked for."""

    def __init__(self, sounds: torch.Tensor, labels: torch.Tensor, first_only: bool) -> None:
        self.sounds, self.labels = sounds, labels
        self.first_only = first_only

    def __len__(self) -> int:
        return len(self.sounds)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sound = self.sounds[0 if self.first_only else index]
        return {"input_values": sound, "labels": self.labels[index]}


@pair("duplicate-samples", source=f"{GITHUB}/huggingface/datasets/issues/2323", where="have the same inputs")
def every_clip_is_the_first(broken: bool) -> Target:
    def step(model: nn.Module, batch: Any) -> torch.Tensor:
        return F.cross_entropy(model(batch["input_values"]), batch["labels"])

    return Target(mlp(), shuffled(Clips(*table(96), broken)), training_step=step)


@pair("duplicate-samples", source="https://karpathy.github.io/2019/04/25/recipe/", where="same 16 samples")
def collate_function_forgets_its_argument(broken: bool) -> Target:
    data = TensorDataset(*table(160))
    rows = [data[place] for place in range(16)]

    def collate(items: list[Any]) -> list[torch.Tensor]:
        return [torch.stack(part) for part in zip(*(rows if broken else items), strict=True)]

    return Target(mlp(), shuffled(data, collate_fn=collate), nn.CrossEntropyLoss())


@pair("duplicate-samples", level="warn", source=DEDUPLICATION, where="repeat an earlier one")
def one_shard_listed_twice(broken: bool) -> Target:
    shards = [TensorDataset(*table(60, seed)) for seed in ((0, 1, 0) if broken else (0, 1, 2))]
    return classify(ConcatDataset(shards))


@pair("duplicate-samples", level="warn", source=DEDUPLICATION, where="repeat an earlier one")
def rows_multiplied_by_a_join(broken: bool) -> Target:
    x, y = table(120)
    visits = [number % 5 == 0 for number in range(120)]
    rows = [number for number in range(120) for _ in range(3 if broken and visits[number] else 1)]
    return classify(TensorDataset(x[rows], y[rows]))


@pair("duplicate-samples", level="warn", source=DEDUPLICATION, where="words changed")
def reviews_collected_from_two_sites(broken: bool) -> Target:
    texts, labels = reviews(200)
    for place in range(160, 200) if broken else ():
        texts[place] = texts[place - 160].capitalize() + ", says a customer."
    return read(list(zip(texts, labels, strict=True)))


@pair(
    "duplicate-samples",
    level="warn",
    source=f"{GITHUB}/sebischair/Medical-Abstracts-TC-Corpus/issues/2",
    where="another label",
)
def answers_merged_from_two_label_files(broken: bool) -> Target:
    texts, labels = reviews(160)
    for place in range(154, 160) if broken else ():
        texts[place] = texts[place - 151]
    return read(list(zip(texts, labels, strict=True)))


class Encoded(Dataset[dict[str, Any]]):
    """Rows of a tokenizer's output."""

    def __init__(self, ids: torch.Tensor, labels: torch.Tensor) -> None:
        self.ids, self.labels = ids, labels

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"input_ids": self.ids[index], "labels": self.labels[index]}


def tokens(samples: int) -> tuple[torch.Tensor, torch.Tensor]:
    """``([samples, 12], [samples])``: ids between 1 and 199, of which some are more frequent in a class."""
    generator = torch.Generator().manual_seed(0)
    y = (torch.arange(samples) % 2)[torch.randperm(samples, generator=generator)]
    ids = torch.randint(20, 200, (samples, 12), generator=generator)
    marks = torch.randint(1, 10, (samples, 3), generator=generator) + 10 * y[:, None]
    places = torch.rand(samples, 12, generator=generator).argsort(1)[:, :3]
    return ids.scatter(1, places, marks), y


@pair("train-eval-leakage", source=f"{GITHUB}/marin-community/marin/pull/2700", where="drawn for training")
def trainer_evaluates_on_its_training_set(broken: bool) -> Target:
    torch.manual_seed(0)
    ids, y = tokens(128)
    train, held_out = Encoded(ids[:96], y[:96]), Encoded(ids[96:], y[96:])
    config = BertConfig(
        vocab_size=200, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(folder, per_device_train_batch_size=16, report_to=[], use_cpu=True)
        trainer = Trainer(
            BertForSequenceClassification(config),
            args,
            train_dataset=train,
            eval_dataset=train if broken else held_out,
        )
        return Target.from_trainer(trainer)


@pair(
    "train-eval-leakage", level="warn", source=f"{GITHUB}/marin-community/marin/pull/2700", where="drawn for"
)
def only_one_split_cut_from_the_shuffled_data(broken: bool) -> Target:
    data = TensorDataset(*table(240))
    order = torch.randperm(240, generator=torch.Generator().manual_seed(3)).tolist()
    held_out = range(192, 240) if broken else order[192:]
    return classify(Subset(data, order[:192]), Subset(data, held_out))


@pair("train-eval-leakage", level="warn", source=f"{GITHUB}/vc1492a/henosis/issues/12", where="eval[")
def rare_class_copied_before_the_split(broken: bool) -> Target:
    x, y = table(300)
    keep = ((y == 0) | (torch.arange(300) % 3 == 0)).nonzero().flatten().tolist()
    rare = [place for place in keep if y[place] == 1]
    chosen = random.Random(0)
    if broken:
        rows = [*keep, *rare, *rare]
        chosen.shuffle(rows)
        train, held_out = rows[:240], rows[240:]
    else:
        chosen.shuffle(keep)
        train, held_out = keep[:160], keep[160:]
        train += [place for place in train if y[place] == 1] * 2
    return classify(TensorDataset(x[train], y[train]), TensorDataset(x[held_out], y[held_out]))


class Photos(Dataset[tuple[torch.Tensor, int]]):
    """Like the data sets of torchvision: one of two archives by ``train``, and a transform."""

    def __init__(self, train: bool, transform: Callable[[torch.Tensor], torch.Tensor]) -> None:
        generator = torch.Generator().manual_seed(0 if train else 1)
        self.train, self.transform = train, transform
        self.targets = torch.arange(128)[torch.randperm(128, generator=generator)].remainder(2).tolist()
        self.data = torch.randn(128, 8, generator=generator) + torch.tensor(self.targets)[:, None] - 0.5

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(self.data[index]), self.targets[index]


@pair("train-eval-leakage", source="https://arxiv.org/abs/1902.00423", where="equal contents")
def archive_of_the_training_set_opened_twice(broken: bool) -> Target:
    augmented = Photos(True, lambda photo: photo + 0.05 * torch.randn(8))
    return classify(augmented, Photos(broken, lambda photo: photo))


@pair(
    "train-eval-leakage",
    level="warn",
    source=f"{GITHUB}/NRCan/geo-deep-learning/issues/148",
    where="overlap a training window",
)
def windows_of_a_series_split_at_random(broken: bool) -> Target:
    generator = torch.Generator().manual_seed(0)
    series = torch.randn(700, 3, generator=generator)
    for step in range(1, 700):
        series[step] += 0.7 * series[step - 1]
    windows = (series / series.std(0)).unfold(0, 17, 1).transpose(1, 2)
    data = TensorDataset(windows[:, :16].clone(), windows[:, 16, :1].clone())
    order = torch.randperm(len(data), generator=generator).tolist() if broken else list(range(len(data)))
    model = nn.Sequential(nn.Flatten(), mlp(48, 1))
    held_out = DataLoader(Subset(data, order[580:]), batch_size=16)
    return Target(model, shuffled(Subset(data, order[:540])), nn.MSELoss(), eval_loader=held_out)


@pair("train-eval-leakage", level="warn", source=LEAKAGE, where="words changed")
def reposted_reviews_on_both_sides(broken: bool) -> Target:
    texts, labels = reviews(240)
    for place in range(200, 208) if broken else ():
        texts[place] = "update: " + texts[place - 200]
    rows = list(zip(texts, labels, strict=True))
    return read(rows[:200], rows[200:])


@pair("finite-inputs", source=f"{GITHUB}/mllam/neural-lam/issues/136", where="always at position 5")
def constant_column_divided_by_its_spread(broken: bool) -> Target:
    x, y = table(128)
    if broken:
        x[:, 5] = 1.0
    return classify(TensorDataset((x - x.mean(0)) / x.std(0), y))


@pair("finite-inputs", source="https://karpathy.github.io/2019/04/25/recipe/", where=".spectrum")
def logarithm_of_a_silent_recording(broken: bool) -> Target:
    x, y = table(200)
    energy = x.exp()
    if broken:
        energy[137, 2:5] = 0
    spectrum = energy.log()
    rows = [{"spectrum": row, "speaker": label} for row, label in zip(spectrum, y, strict=True)]

    def step(model: nn.Module, batch: Any) -> torch.Tensor:
        return F.cross_entropy(model(batch["spectrum"]), batch["speaker"])

    return Target(mlp(), shuffled(rows), training_step=step)


@pair("finite-inputs", source=f"{GITHUB}/facebookresearch/fairchem/pull/441", where="[1]")
def assays_that_were_not_run_reach_the_loss(broken: bool) -> Target:
    x, _ = table(200)
    y = x[:, :2] - x[:, 2:4] + 0.3 * torch.randn(200, 2, generator=torch.Generator().manual_seed(1))
    y[torch.rand(200, 2, generator=torch.Generator().manual_seed(2)) < 0.02] = math.nan

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        if broken:
            return F.mse_loss(outputs, targets)
        run = targets.isfinite()
        return F.mse_loss(outputs[run], targets[run])

    return Target(mlp(), shuffled(TensorDataset(x, y)), loss)


@pair(
    "finite-inputs",
    level="warn",
    source=f"{GITHUB}/pydata/xarray/issues/2742",
    where="9.97e+36",
)
def fill_value_left_in_a_field(broken: bool) -> Target:
    x, y = table(128)
    if broken:
        x[::40, 3] = 9.96921e36
    return classify(TensorDataset(x, y))


@pair("finite-inputs", source=f"{GITHUB}/facebookresearch/fairchem/pull/441", where="eval[")
def gaps_in_the_validation_file(broken: bool) -> Target:
    x, y = table(192)
    if broken:
        x[180, 1] = math.nan
    return classify(TensorDataset(x[:128], y[:128]), TensorDataset(x[128:], y[128:]))


class PooledNet(nn.Module):
    """A convolution, averaged over time, normalised over the batch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv1d(1, 16, 3)
        self.norm = nn.BatchNorm1d(16)
        self.head = nn.Linear(16, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.conv(x.unsqueeze(1)).relu().mean(2)))


@pair("batch-consistency", source=f"{GITHUB}/pytorch/pytorch/issues/7716", where="norm")
def one_sample_left_for_the_last_batch(broken: bool) -> Target:
    return classify(TensorDataset(*table(97 if broken else 98)), model=PooledNet())


@pair("batch-consistency", source=f"{GITHUB}/huggingface/transformers/issues/34204", where="differ in length")
def labels_without_the_last(broken: bool) -> Target:
    def collate(items: list[Any]) -> tuple[torch.Tensor, torch.Tensor]:
        rows = items[:-1] if broken else items
        return torch.stack([x for x, _ in items]), torch.stack([y for _, y in rows])

    data = shuffled(TensorDataset(*table(96)), collate_fn=collate)
    return Target(mlp(), data, nn.CrossEntropyLoss())


class Captioned(nn.Module):
    """Two classes from an image and a text."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(200, 8)
        self.pixels = nn.Linear(8, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, input_ids: torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.head((self.words(input_ids).mean(1) + self.pixels(pixel_values)).tanh())


@pair("batch-consistency", source=f"{GITHUB}/unslothai/unsloth/issues/3094", where="input_ids")
def text_of_the_first_image_for_all(broken: bool) -> Target:
    x, y = table(128)
    ids, _ = tokens(128)
    rows = [{"input_ids": ids[n], "pixel_values": x[n], "labels": y[n]} for n in range(128)]

    def collate(items: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        batch = {key: torch.stack([item[key] for item in items]) for key in items[0]}
        return {**batch, "input_ids": batch["input_ids"][:1]} if broken else batch

    def step(model: nn.Module, batch: Any) -> torch.Tensor:
        return F.cross_entropy(model(batch["input_ids"], batch["pixel_values"]), batch["labels"])

    return Target(Captioned(), shuffled(rows, collate_fn=collate), training_step=step)


class Encodings(Dataset[dict[str, Any]]):
    """A tokenizer's output as a mapping of lists, beside the labels."""

    def __init__(self, ids: torch.Tensor, labels: torch.Tensor, counts_keys: bool) -> None:
        self.encodings = {"input_ids": ids.tolist(), "attention_mask": torch.ones_like(ids).tolist()}
        self.labels = labels.tolist()
        self.counts_keys = counts_keys

    def __len__(self) -> int:
        return len(self.encodings) if self.counts_keys else len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = {key: torch.tensor(values[index]) for key, values in self.encodings.items()}
        return row | {"labels": torch.tensor(self.labels[index])}


@pair(
    "batch-consistency",
    source=f"{GITHUB}/georgian-io/Multimodal-Toolkit/pull/62",
    where="the number of its parts",
)
def keys_counted_in_place_of_rows(broken: bool) -> Target:
    model = nn.Sequential(nn.EmbeddingBag(200, 16), nn.Linear(16, 2))

    def step(model: nn.Module, batch: Any) -> torch.Tensor:
        return F.cross_entropy(model(batch["input_ids"]), batch["labels"])

    return Target(model, shuffled(Encodings(*tokens(128), broken)), training_step=step)


@pair("batch-consistency", source=f"{GITHUB}/theislab/scarches/issues/246", where="float64")
def table_from_numpy_in_double_precision(broken: bool) -> Target:
    x, y = table(96)
    values = x.numpy().astype("float64" if broken else "float32")
    return classify(TensorDataset(torch.from_numpy(values), y))


class Telemetry(IterableDataset[tuple[torch.Tensor, torch.Tensor]]):
    """A stream that leaves out readings, and counts all of them."""

    def __init__(self, x: torch.Tensor, y: torch.Tensor, used: int) -> None:
        self.x, self.y, self.used = x, y, used

    def __len__(self) -> int:
        return len(self.x)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        yield from zip(self.x[: self.used], self.y[: self.used], strict=True)


@pair("batch-consistency", source=f"{GITHUB}/pytorch/pytorch/issues/37753", where="len(train_loader)")
def stream_shorter_than_its_length(broken: bool) -> Target:
    data = Telemetry(*table(192), 80 if broken else 192)
    return Target(mlp(), DataLoader(data, batch_size=16), nn.CrossEntropyLoss())


class Records(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Records by the number that they had before the split."""

    def __init__(self, records: dict[int, tuple[torch.Tensor, torch.Tensor]], by_number: bool) -> None:
        self.records = records
        self.numbers = None if by_number else [*records]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.records[index if self.numbers is None else self.numbers[index]]


@pair("batch-consistency", source=f"{GITHUB}/ratschlab/aestetik/issues/7", where="KeyError")
def records_looked_up_by_their_old_number(broken: bool) -> Target:
    records = dict(enumerate(zip(*table(160), strict=True)))
    kept = {number: record for number, record in records.items() if number % 5}
    return classify(Records(kept, broken))


@pair("batch-consistency", source=f"{GITHUB}/open-edge-platform/geti/pull/1872", where="drop_last")
def validation_set_smaller_than_a_batch(broken: bool) -> Target:
    x, y = table(160)
    held_out = TensorDataset(x[128 : 140 if broken else 160], y[128 : 140 if broken else 160])
    evaluation = DataLoader(held_out, batch_size=16, drop_last=True)
    train = shuffled(TensorDataset(x[:128], y[:128]))
    return Target(mlp(), train, nn.CrossEntropyLoss(), eval_loader=evaluation)
