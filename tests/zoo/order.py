"""Data in the wrong order, data that repeats, and broken text."""

from __future__ import annotations

import html
import io
import itertools
import random
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, TensorDataset, get_worker_info

from debugkit import Target
from debugkit.testing import mlp, word_tokenizer

from . import pair

FAR_FROM = "https://arxiv.org/abs/2105.02732"
CE = nn.CrossEntropyLoss()


def clusters(samples: int = 128, classes: int = 2, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """``[samples, 8]`` around one centre per class, and the classes, mixed."""
    g = torch.Generator().manual_seed(seed)
    y = (torch.arange(samples) % classes)[torch.randperm(samples, generator=g)]
    x = 2 * torch.randn(classes, 8, generator=g)[y] + 0.5 * torch.randn(samples, 8, generator=g)
    return (x - x.mean(0)) / x.std(0), y


def by_class(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    order = y.argsort(stable=True)
    return x[order], y[order]


# --- the order of the labels ---


class Folder(Dataset[Any]):
    """Images of one folder per class, in the order of the folders."""

    def __init__(self, classes: int = 3, per_class: int = 40) -> None:
        self.files = [(c, number) for c in range(classes) for number in range(per_class)]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, place: int) -> tuple[torch.Tensor, int]:
        c, number = self.files[place]
        image = torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(100 * c + number))
        image[0, 2 * c : 2 * c + 2] += 3
        return image, c


@pair(
    "label-order",
    source="https://github.com/zalandoresearch/fashion-mnist/pull/5",
    where="batch[1]",
)
def images_in_the_order_of_their_folders(broken: bool) -> Target:
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 3))
    return Target(model, DataLoader(Folder(), batch_size=12, shuffle=not broken), CE)


@pair("label-order", source="https://github.com/facebookresearch/fastText/issues/74", where="batch.labels")
def positive_reviews_after_the_negative_ones(broken: bool) -> Target:
    from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

    draw = random.Random(0)
    rows = []
    for label in (0, 1):
        for _ in range(48):
            ids = [2, *draw.sample(range(4 + 20 * label, 24 + 20 * label), 8), 3]
            rows.append({"input_ids": ids, "attention_mask": [1] * 10, "labels": label})
    config = BertConfig(
        vocab_size=44, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    args = TrainingArguments(
        output_dir=tempfile.gettempdir(),
        per_device_train_batch_size=8,
        report_to=[],
        use_cpu=True,
        train_sampling_strategy="sequential" if broken else "random",
    )
    return Target.from_trainer(Trainer(BertForSequenceClassification(config), args, train_dataset=rows))


class Buffered(IterableDataset[Any]):
    """A file sorted by class, read through a shuffle buffer."""

    def __init__(self, buffer: int) -> None:
        self.x, self.y = by_class(*clusters(320, classes=4))
        self.buffer = buffer

    def __iter__(self) -> Iterator[Any]:
        held: list[int] = []
        for place in range(len(self.y)):
            held.append(place)
            if len(held) == self.buffer:
                yield self._take(held)
        while held:
            yield self._take(held)

    def _take(self, held: list[int]) -> Any:
        place = held.pop(random.randrange(len(held)))
        return self.x[place], self.y[place]


@pair("label-order", level="warn", source="https://github.com/google/flax/pull/1268", where="batch[1]")
def shuffle_buffer_shorter_than_a_class(broken: bool) -> Target:
    return Target(mlp(classes=4), DataLoader(Buffered(40 if broken else 320), batch_size=16), CE)


class Grouped(Sampler[list[int]]):
    """Batches of 16 in random order, each from one group of samples."""

    def __init__(self, groups: torch.Tensor) -> None:
        self.groups = groups

    def __iter__(self) -> Iterator[list[int]]:
        batches = []
        for group in self.groups.unique():
            places = (self.groups == group).nonzero().flatten()
            batches += list(places[torch.randperm(len(places))].split(16))
        yield from (batches[place].tolist() for place in torch.randperm(len(batches)))


@pair("label-order", level="warn", source="https://github.com/vlfeat/matconvnet/issues/393", where="batch[1]")
def batches_grouped_by_the_label(broken: bool) -> Target:
    """The sampler should group by the length of a recording."""
    x, y = clusters(192, classes=3)
    lengths = torch.arange(192) % 4
    data = TensorDataset(x, y)
    return Target(mlp(classes=3), DataLoader(data, batch_sampler=Grouped(y if broken else lengths)), CE)


@pair(
    "label-order",
    level="warn",
    source="https://github.com/BVLC/caffe/issues/1445",
    where="rank correlation",
)
def houses_sorted_by_price(broken: bool) -> Target:
    x, _ = clusters(192)
    price = x @ torch.linspace(-1, 1, 8) + 0.1 * torch.randn(192, generator=torch.Generator().manual_seed(1))
    price = (price - price.mean()) / price.std()
    order = price.argsort() if broken else torch.randperm(192)
    rows = [{"features": x[place], "target": price[place]} for place in order]

    def step(model: nn.Module, batch: Any) -> torch.Tensor:
        return F.mse_loss(model(batch["features"]).squeeze(1), batch["target"])

    return Target(mlp(classes=1), DataLoader(rows, batch_size=16, shuffle=not broken), training_step=step)  # type: ignore[arg-type]


@pair("label-order", source="https://github.com/NVIDIA/DIGITS/issues/29", where="batch[1]")
def batches_cut_from_one_class_after_the_other(broken: bool) -> Target:
    x, y = clusters(160, classes=2)
    if broken:
        x, y = torch.cat([x[y == c] for c in (0, 1)]), torch.cat([y[y == c] for c in (0, 1)])
    return Target(mlp(), [*zip(x.split(16), y.split(16), strict=True)], CE)


# --- what repeats ---


class Noisy(Dataset[Any]):
    """Rows with noise added by ``noise``."""

    def __init__(self, noise: Callable[[], np.ndarray[Any, Any]]) -> None:
        self.x, self.y = clusters()
        self.noise = noise

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, place: int) -> Any:
        return self.x[place] + 0.1 * torch.from_numpy(self.noise()).float(), self.y[place]


class PerWorker:
    """A generator that is made on first use, in the worker."""

    def __init__(self) -> None:
        self.generator: np.random.RandomState | None = None

    def __call__(self) -> np.ndarray[Any, Any]:
        if self.generator is None:
            self.generator = np.random.RandomState(torch.initial_seed() % 2**32)
        return self.generator.randn(8)


@pair("loader-randomness", source="https://github.com/xingyizhou/CenterNet/issues/233", where="batch[0]")
def augmentation_with_a_random_state_of_its_own(broken: bool) -> Target:
    state = np.random.RandomState(0)
    noise = (lambda: state.randn(8)) if broken else PerWorker()
    return Target(mlp(), DataLoader(Noisy(noise), batch_size=16, shuffle=True, num_workers=2), CE)


def seed_by_number(worker: int) -> None:
    np.random.seed(worker)


def seed_by_torch(worker: int) -> None:
    np.random.seed(torch.initial_seed() % 2**32)


@pair(
    "loader-randomness",
    level="warn",
    source="https://github.com/open-mmlab/OpenPCDet/issues/886",
    where="repeats in every epoch",
)
def workers_seeded_by_their_number(broken: bool) -> Target:
    loader = DataLoader(
        Noisy(lambda: np.random.randn(8)),
        batch_size=16,
        shuffle=True,
        num_workers=2,
        worker_init_fn=seed_by_number if broken else seed_by_torch,
    )
    return Target(mlp(), loader, CE)


class Lines(IterableDataset[Any]):
    """Rows of a text file, each worker its share or every worker all of them."""

    def __init__(self, shared: bool) -> None:
        x, y = clusters()
        rows = [[*row, label] for row, label in zip(x.tolist(), y.tolist(), strict=True)]
        self.text = "\n".join(",".join(map(str, row)) for row in rows)
        self.shared = shared

    def __iter__(self) -> Iterator[Any]:
        lines: Iterator[str] = iter(io.StringIO(self.text))
        info = get_worker_info()
        if self.shared and info is not None:
            lines = itertools.islice(lines, info.id, None, info.num_workers)
        for line in lines:
            *features, label = map(float, line.split(","))
            yield torch.tensor(features), int(label)


@pair("loader-randomness", source="https://github.com/huggingface/datasets/issues/3423", where="2 workers")
def every_worker_reads_the_whole_file(broken: bool) -> Target:
    return Target(mlp(), DataLoader(Lines(shared=not broken), batch_size=16, num_workers=2), CE)


@pair(
    "loader-randomness",
    source="https://github.com/wolny/pytorch-3dunet/issues/32",
    where="NumPy's global generator",
)
def seed_set_for_every_sample(broken: bool) -> Target:
    def noise() -> np.ndarray[Any, Any]:
        if broken:
            np.random.seed(1234)
        return np.random.randn(8)

    return Target(mlp(), DataLoader(Noisy(noise), batch_size=16, shuffle=True), CE)


class Buckets(Sampler[list[int]]):
    """Batches of samples of similar length, in random order."""

    def __init__(self, lengths: list[int], seeded_once: bool) -> None:
        self.order = sorted(range(len(lengths)), key=lengths.__getitem__)
        self.draw = random.Random(0)
        self.seeded_once = seeded_once

    def __iter__(self) -> Iterator[list[int]]:
        draw = self.draw if self.seeded_once else random.Random(0)
        batches = [self.order[start : start + 16] for start in range(0, len(self.order), 16)]
        draw.shuffle(batches)
        yield from batches


@pair(
    "loader-randomness",
    level="warn",
    source="https://github.com/lancedb/lancedb/issues/3705",
    where="Buckets",
)
def bucket_sampler_seeds_itself_in_every_epoch(broken: bool) -> Target:
    x, y = clusters()
    lengths = torch.randint(5, 50, (128,), generator=torch.Generator().manual_seed(2)).tolist()
    loader = DataLoader(TensorDataset(x, y), batch_sampler=Buckets(lengths, seeded_once=not broken))
    return Target(mlp(), loader, CE)


class Counting(IterableDataset[Any]):
    """Shuffles by the number of the epoch, which it counts itself."""

    def __init__(self) -> None:
        self.x, self.y = clusters()
        self.epoch = 0

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        places = list(range(128) if info is None else range(64 * info.id, 64 * info.id + 64))
        random.Random(self.epoch).shuffle(places)
        self.epoch += 1
        yield from ((self.x[place], self.y[place]) for place in places)


@pair(
    "loader-randomness",
    level="warn",
    source="https://github.com/facebookresearch/ClassyVision/issues/422",
    where="workers are made anew",
)
def epochs_counted_in_workers_that_end(broken: bool) -> Target:
    loader = DataLoader(Counting(), batch_size=16, num_workers=2, persistent_workers=not broken)
    return Target(mlp(), loader, CE)


@pair(
    "loader-randomness",
    level="warn",
    source="https://github.com/cleverhans-lab/cleverhans/issues/232",
    where="in which they are stored",
)
def regression_without_shuffling(broken: bool) -> Target:
    x, _ = clusters()
    y = x[:, :2].sum(1, keepdim=True) + 0.1 * torch.randn(128, 1, generator=torch.Generator().manual_seed(3))
    return Target(
        mlp(classes=1), DataLoader(TensorDataset(x, y), batch_size=32, shuffle=not broken), nn.MSELoss()
    )


class Slices:
    """Batches cut from arrays by hand."""

    def __init__(self, seed: int | None) -> None:
        self.x, self.y = clusters()
        self.seed = seed

    def __iter__(self) -> Iterator[Any]:
        order = torch.from_numpy(np.random.default_rng(self.seed).permutation(len(self.y)))
        for places in order.split(16):
            yield self.x[places], self.y[places]


@pair(
    "loader-randomness",
    level="warn",
    source="https://github.com/facebookresearch/ClassyVision/pull/118",
    where="the same permutation",
)
def batches_by_hand_from_a_fixed_seed(broken: bool) -> Target:
    return Target(mlp(), Slices(0 if broken else None), CE)


# --- texts ---

SPORT = "goal team coach league draw stadium season penalty referee transfer cup striker"
MONEY = "bank rate loan market profit share tax budget export currency price debt"
COMMON = "the about after before with from again today week report says reader first under over"
TOPICS = [text.split() for text in (SPORT, MONEY)]


def articles(samples: int = 96) -> list[tuple[str, int]]:
    """Texts of two topics with their label, each different from the others."""
    draw = random.Random(0)
    found = []
    for number in range(samples):
        words = draw.sample(TOPICS[number % 2], 6) + draw.sample(COMMON.split(), 5)
        draw.shuffle(words)
        found.append((" ".join(words), number % 2))
    return found


def counted(text: str) -> list[float]:
    words = text.split()
    return [float(any(word in found for found in words)) for word in TOPICS[0] + TOPICS[1]]


def read_by_words(texts: list[str]) -> Target:
    """A classifier of words that are in a text; the labels take turns."""
    rows = [(text, number % 2) for number, text in enumerate(texts)]

    def step(model: nn.Module, batch: Any) -> torch.Tensor:
        found, labels = batch
        return F.cross_entropy(model(torch.tensor([counted(text) for text in found])), labels)

    return Target(mlp(features=24), DataLoader(rows, batch_size=16, shuffle=True), training_step=step)  # type: ignore[arg-type]


@pair(
    "text-quality",
    level="warn",
    source="https://github.com/pandas-dev/pandas/issues/25353",
    where="placeholder",
)
def missing_articles_become_a_word(broken: bool) -> Target:
    column = [None if broken and number % 12 == 5 else text for number, (text, _) in enumerate(articles())]
    return read_by_words([str(text) for text in column])


@pair(
    "text-quality", level="warn", source="https://docs.h5py.org/en/stable/strings.html", where="Python value"
)
def byte_strings_through_str(broken: bool) -> Target:
    stored = [text.encode() for text, _ in articles()]
    return read_by_words([str(text) if broken else text.decode() for text in stored])


@pair("text-quality", level="warn", source=FAR_FROM, where="HTML tags")
def pages_with_their_markup(broken: bool) -> Target:
    page = '<div class="article"><p style="margin:0">{}</p><a href="/next"><img src="n.png"></a></div>'
    return read_by_words([page.format(text) if broken else text for text, _ in articles()])


@pair("text-quality", level="warn", source="https://docs.python.org/3/library/html.html", where="escaped")
def quotes_escaped_for_the_web(broken: bool) -> Target:
    texts = [f'"{text}" & more, it\'s said' for text, _ in articles()]
    return read_by_words([html.escape(text) if broken else text for text in texts])


def bytes_tokenizer() -> Any:
    """A tokenizer of single bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: index for index, letter in enumerate(["<pad>", *letters])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    make: Any = PreTrainedTokenizerFast
    return make(tokenizer_object=tokenizer, pad_token="<pad>")


def classified(tokenizer: Any, texts: list[str]) -> Target:
    """A small BERT on token ids with a mask; the labels take turns."""
    from transformers import BertConfig, BertForSequenceClassification, DataCollatorWithPadding

    rows = [{**tokenizer(text), "labels": number % 2} for number, text in enumerate(texts)]
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        pad_token_id=tokenizer.pad_token_id,
    )
    loader: DataLoader[Any] = DataLoader(
        rows,  # type: ignore[arg-type]
        batch_size=16,
        shuffle=True,
        collate_fn=DataCollatorWithPadding(tokenizer),
    )
    return Target(BertForSequenceClassification(config), loader, tokenizer=tokenizer)


@pair(
    "text-quality",
    level="warn",
    source="https://github.com/gbif/portal-feedback/issues/3795",
    where="Latin-1",
)
def file_opened_in_the_wrong_encoding(broken: bool) -> Target:
    written = [f"À l'été, {text} — café".encode() for text, _ in articles()]
    texts = [text.decode("cp1252" if broken else "utf-8", errors="replace") for text in written]
    return classified(bytes_tokenizer(), texts)


@pair("text-quality", source="https://github.com/h2oai/h2o-llmstudio/issues/451", where="special tokens")
def column_that_most_rows_do_not_have(broken: bool) -> Target:
    column = "body" if broken else "text"
    rows = [
        {"text": text, **({"body": text} if number % 3 == 0 else {})}
        for number, (text, _) in enumerate(articles())
    ]
    tokenizer = word_tokenizer(f"{SPORT} {MONEY} {COMMON}".split())
    return classified(tokenizer, [row.get(column, "") for row in rows])
