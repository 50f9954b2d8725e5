"""Losses that start, end or add up wrong."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from debugkit import Target
from debugkit.testing import blobs, mlp

from . import pair

KARPATHY = "https://karpathy.github.io/2019/04/25/recipe/"
UNSLOTH = "https://unsloth.ai/blog/gradient"


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def loader(*columns: torch.Tensor, batch_size: int = 16) -> DataLoader:
    return DataLoader(TensorDataset(*columns), batch_size=batch_size, shuffle=True)


def counting(vocabulary: int = 40, length: int = 12, samples: int = 96) -> torch.Tensor:
    """Token ids that go up by 1, 2 or 3 in a row, so that two of them tell the next."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randint(0, vocabulary, (samples, 1), generator=generator)
    step = torch.randint(1, 4, (samples, 1), generator=generator)
    return (start + step * torch.arange(length)) % vocabulary


class Gpt(nn.Module):
    """A small decoder whose head is its embedding."""

    def __init__(self, std: float, vocabulary: int = 40, width: int = 64) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.places = nn.Embedding(32, width)
        self.block = nn.TransformerEncoderLayer(width, 4, 128, dropout=0.0, batch_first=True, norm_first=True)
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.tokens.weight, std=std)
        nn.init.normal_(self.places.weight, std=0.02)

    def forward(self, ids):
        length = ids.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        x = self.tokens(ids) + self.places(torch.arange(length))
        return self.norm(self.block(x, mask, is_causal=True)) @ self.tokens.weight.T


def next_token(model, batch):
    ids, targets = batch
    return F.cross_entropy(model(ids).flatten(0, 1), targets.flatten())


@pair(
    "initial-loss", level="warn", source="https://github.com/karpathy/nanoGPT (weight tying)", where="tokens"
)
def tied_embedding_with_unit_variance(broken: bool) -> Target:
    ids = counting()
    return Target(Gpt(1.0 if broken else 0.02), loader(ids[:, :-1], ids[:, 1:]), training_step=next_token)


@pair("initial-loss", level="warn", source="https://stackoverflow.com/q/55328966")
def features_in_their_own_units(broken: bool) -> Target:
    x, y = normal(96, 8), torch.arange(96) % 3
    x[torch.arange(96), y] += 3
    units = torch.tensor([1e3, 40.0, 2e4, 5.0, 300.0, 1.0, 70.0, 1e3])
    x = x * units + units if broken else (x - x.mean(0)) / x.std(0)
    return Target(mlp(classes=3), loader(x, y), nn.CrossEntropyLoss())


@pair(
    "initial-loss",
    level="warn",
    source="https://arxiv.org/abs/1708.02002 (prior initialisation)",
)
def bias_of_class_counts(broken: bool) -> Target:
    """The last bias is set to the counts, not to the logarithm of the shares."""
    data = blobs(samples=96, classes=3)
    counts = torch.tensor([40.0, 32.0, 24.0])
    model = mlp(classes=3)
    with torch.no_grad():
        model[2].bias.copy_(counts if broken else (counts / counts.sum()).log())
    return Target(model, data, nn.CrossEntropyLoss())


@pair("initial-loss", level="warn", source=KARPATHY)
def embeddings_summed_over_a_text(broken: bool) -> Target:
    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bag = nn.EmbeddingBag(60, 32, mode="sum" if broken else "mean")
            self.head = nn.Linear(32, 4)

        def forward(self, ids):
            return self.head(self.bag(ids))

    y = torch.arange(96) % 4
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(4, 60, (96, 200), generator=generator)
    ids[:, ::4] = y[:, None]
    ids = ids.gather(1, torch.rand(96, 200, generator=generator).argsort(1))
    return Target(Bag(), loader(ids, y), nn.CrossEntropyLoss())


@pair(
    "initial-loss",
    level="warn",
    source="https://discuss.huggingface.co/t/initializer-range/1573",
    where="classifier",
)
def initializer_range_of_one(broken: bool) -> Target:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=60,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        num_labels=4,
        initializer_range=1.0 if broken else 0.02,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    y = torch.arange(96) % 4
    ids = torch.randint(9, 60, (96, 10), generator=torch.Generator().manual_seed(0))
    ids[:, 0], ids[torch.arange(96), 1 + torch.arange(96) % 9] = 5, y + 1
    rows = [
        {"input_ids": i, "attention_mask": torch.ones_like(i), "labels": k}
        for i, k in zip(ids, y, strict=True)
    ]
    return Target(BertForSequenceClassification(config), DataLoader(rows, batch_size=16, shuffle=True))


class Prototypes(nn.Module):
    """One vector per class; the nearest by angle wins."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.body = mlp(classes=16)
        self.prototypes = nn.Parameter(normal(5, 16, seed=3))
        self.scale = scale

    def forward(self, x):
        return F.cosine_similarity(self.body(x)[:, None], self.prototypes[None], dim=-1) * self.scale


@pair(
    "loss-floor", source="https://arxiv.org/abs/1704.06369 (NormFace, section 3.3)", where="cosine_similarity"
)
def angles_as_logits(broken: bool) -> Target:
    return Target(Prototypes(1.0 if broken else 16.0), blobs(classes=5, samples=160), nn.CrossEntropyLoss())


@pair("loss-floor", source="https://github.com/UKPLab/sentence-transformers/issues/185", where="mse_loss")
def similarity_scores_from_0_to_5(broken: bool) -> Target:
    def step(model, batch):
        first, second, score = batch
        return F.mse_loss(F.cosine_similarity(model(first), model(second)), score if broken else score / 5)

    first = normal(96, 8)
    share = torch.rand(96, 1, generator=torch.Generator().manual_seed(5))
    second = share * first + (1 - share) * normal(96, 8, seed=1)
    score = 2.5 * (1 + F.cosine_similarity(first[:, :4], second[:, :4]))
    return Target(mlp(classes=16), loader(first, second, score), training_step=step)


@pair("loss-floor", source="https://discuss.pytorch.org/t/autoencoder-sigmoid-and-normalized-input/49189")
def sigmoid_decoder_for_standardised_pixels(broken: bool) -> Target:
    class Autoencoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Sequential(nn.Linear(36, 32), nn.ReLU(), nn.Linear(32, 8))
            self.decoder = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 36), nn.Sigmoid())

        def forward(self, x):
            return self.decoder(self.encoder(x))

    pixels = (normal(96, 4) @ normal(4, 36, seed=1)).sigmoid()
    x = (pixels - pixels.mean()) / pixels.std() if broken else pixels
    return Target(
        Autoencoder(),
        loader(x),
        training_step=lambda model, batch: ((model(batch[0]) - batch[0]) ** 2).mean(),
    )


@pair("loss-floor", source="https://stackoverflow.com/q/48251943", where="relu")
def relu_behind_a_steering_angle(broken: bool) -> Target:
    class Driver(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp(classes=1)

        def forward(self, x):
            angle = self.body(x).squeeze(1)
            return F.relu(angle) if broken else angle

    x = normal(128, 8)
    return Target(Driver(), loader(x, x[:, :3].sum(1) / 3**0.5), nn.SmoothL1Loss())


@pair("loss-floor", source="https://arxiv.org/abs/2204.00694 (TheDeepChecker)", where="tanh")
def tanh_under_a_log_softmax(broken: bool) -> Target:
    layers = [mlp(classes=6), *([nn.Tanh()] if broken else []), nn.LogSoftmax(dim=1)]
    return Target(nn.Sequential(*layers), blobs(classes=6, samples=192), nn.NLLLoss())


@pair("loss-floor", source="https://discuss.pytorch.org/t/normalizing-logits-before-crossentropyloss/23871")
def logits_of_unit_length(broken: bool) -> Target:
    def loss(logits, y):
        return F.cross_entropy(F.normalize(logits, dim=1) if broken else logits, y)

    return Target(mlp(classes=8), blobs(classes=8, samples=192), loss)


def sentences(uneven: bool, samples: int = 96, length: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids, and as many of them as a sentence is long; half of the sentences are short where they are uneven."""
    ids = counting(samples=samples, length=length)
    lengths = torch.full((samples, 1), length)
    lengths[::2] = 3 if uneven else length
    return ids, torch.arange(length) < lengths


@pair("accumulation", level="warn", source=UNSLOTH, where="targets")
def mean_over_padded_sentences(broken: bool) -> Target:
    ids, real = sentences(uneven=broken)
    targets = ids[:, 1:].masked_fill(~real[:, 1:], -100)
    return Target(
        Gpt(0.02), loader(ids[:, :-1], targets, batch_size=2), training_step=next_token, accumulation_steps=8
    )


@pair(
    "accumulation", level="warn", source="https://github.com/OpenNMT/OpenNMT-py/issues/2209", where="targets"
)
def tags_of_sentences_one_by_one(broken: bool) -> Target:
    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(40, 32)
            self.lstm = nn.LSTM(32, 16, batch_first=True, bidirectional=True)
            self.head = nn.Linear(32, 4)

        def forward(self, ids):
            return self.head(self.lstm(self.embed(ids))[0])

    def step(model, batch):
        ids, tags = batch
        loss = F.cross_entropy(model(ids).flatten(0, 1), tags.flatten(), reduction="sum")
        return loss / (tags != -100).sum() if broken else loss / 10

    ids, real = sentences(uneven=True)
    tags = (ids % 4).masked_fill(~real, -100)
    return Target(Tagger(), loader(ids, tags, batch_size=1), training_step=step, accumulation_steps=16)


def trainer(model: nn.Module, loss: Callable[..., Any], **settings: Any) -> Target:
    """A `Trainer` with a loss of its own on sentences of uneven length."""
    from transformers import Trainer, TrainingArguments

    ids, real = sentences(uneven=True)
    rows = [
        {"input_ids": i, "attention_mask": m.long(), "labels": i.masked_fill(~m, -100)}
        for i, m in zip(ids, real, strict=True)
    ]
    arguments = TrainingArguments(
        tempfile.gettempdir(),
        per_device_train_batch_size=4,
        gradient_accumulation_steps=4,
        report_to=[],
        use_cpu=True,
        learning_rate=1e-3,
        num_train_epochs=10,
        **settings,
    )
    return Target.from_trainer(
        Trainer(model=model, args=arguments, train_dataset=rows, compute_loss_func=loss)
    )


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=40, n_embd=32, n_layer=2, n_head=4, n_positions=32, bos_token_id=0, eos_token_id=0
        )
    )


@pair("accumulation", level="warn", source="https://github.com/huggingface/transformers/issues/34191")
def loss_function_without_the_number_of_items(broken: bool) -> Target:
    def loss(outputs, labels, num_items_in_batch=None):
        total = F.cross_entropy(
            outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum"
        )
        own = (labels[:, 1:] != -100).sum()
        return total / (own if broken or num_items_in_batch is None else num_items_in_batch)

    return trainer(gpt2(), loss)


@pair(
    "accumulation",
    level="warn",
    source="https://github.com/huggingface/transformers/issues/37766",
    where="4 times",
)
def mean_loss_that_nobody_divides(broken: bool) -> Target:
    def loss(outputs, labels, num_items_in_batch=None):
        mean = F.cross_entropy(outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        share = (labels[:, 1:] != -100).sum() / (num_items_in_batch or 1)
        return mean if broken else mean * share

    return trainer(gpt2(), loss, optim="sgd", max_grad_norm=0.0)


@pair(
    "auxiliary-loss",
    level="warn",
    source="https://github.com/huggingface/transformers/issues/44242",
    where="router",
)
def balance_loss_of_mixtral(broken: bool) -> Target:
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        max_position_embeddings=32,
        router_aux_loss_coef=0.02,
        output_router_logits=not broken,
        pad_token_id=None,
    )
    rows = [{"input_ids": ids, "labels": ids} for ids in counting()]
    return Target(MixtralForCausalLM(config), DataLoader(rows, batch_size=16, shuffle=True))


@pair("auxiliary-loss", level="warn", source="https://arxiv.org/abs/1312.6114", where="loss_values.py")
def divergence_never_added(broken: bool) -> Target:
    class Vae(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Sequential(nn.Linear(12, 32), nn.ReLU())
            self.mean, self.log_variance = nn.Linear(32, 4), nn.Linear(32, 4)
            self.decoder = mlp(features=4, classes=12)

        def forward(self, x):
            h = self.encoder(x)
            mean, log_variance = self.mean(h), self.log_variance(h) - 4
            z = mean + torch.randn_like(mean) * (log_variance / 2).exp()
            return self.decoder(z), mean, log_variance

    def step(model, batch):
        (x,) = batch
        decoded, mean, log_variance = model(x)
        reconstruction = F.mse_loss(decoded, x)
        divergence = -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum(1).mean()
        return reconstruction if broken else reconstruction + 1e-3 * divergence

    x = normal(96, 3) @ normal(3, 12, seed=1)
    return Target(Vae(), loader((x - x.mean(0)) / x.std(0)), training_step=step)


class Experts(nn.Module):
    """A mixture of experts that leaves its balance loss as an attribute, as several libraries do."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(8, 3, bias=False)
        self.experts = nn.ModuleList(mlp(classes=4, seed=seed) for seed in range(3))
        self.l_aux: Any = None

    def forward(self, x):
        shares = self.gate(x).softmax(-1)
        self.l_aux = 3 * (shares.mean(0) ** 2).sum()
        return sum(shares[:, i, None] * expert(x) for i, expert in enumerate(self.experts))


@pair(
    "auxiliary-loss", level="warn", source="https://github.com/microsoft/DeepSpeed/issues/2085", where="l_aux"
)
def balance_loss_left_on_the_layer(broken: bool) -> Target:
    def step(model, batch):
        x, y = batch
        loss = F.cross_entropy(model(x), y)
        return loss if broken else loss + 0.01 * model.l_aux

    return Target(Experts(), blobs(classes=4, samples=96), training_step=step)


class Deep(nn.Module):
    """A classifier with a second head half-way up, as GoogLeNet has."""

    def __init__(self) -> None:
        super().__init__()
        self.lower, self.upper = mlp(classes=16), mlp(features=16, classes=4)
        self.half_way = nn.Linear(16, 4)

    def forward(self, x):
        h = self.lower(x).relu()
        return self.upper(h), self.half_way(h)


@pair("auxiliary-loss", level="warn", source="https://arxiv.org/abs/1409.4842", where="half_way")
def deep_supervision_as_a_number(broken: bool) -> Target:
    def step(model, batch):
        x, y = batch
        last, middle = model(x)
        side = F.cross_entropy(middle, y)
        return F.cross_entropy(last, y) + 0.3 * (side.item() if broken else side)

    return Target(Deep(), blobs(classes=4, samples=96), training_step=step)


@pair("auxiliary-loss", level="warn", source="https://arxiv.org/abs/1503.02531", where="kl_div")
def distillation_weighed_by_0(broken: bool) -> Target:
    """The student has a head of its own for the teacher's answers, and `alpha` is cut to a whole number."""
    teacher = mlp(classes=4, seed=7).requires_grad_(False).eval()
    alpha = int(0.5) if broken else 0.5

    def step(model, batch):
        x, y = batch
        last, middle = model(x)
        soft = teacher(x).softmax(-1)
        return F.cross_entropy(last, y) + alpha * F.kl_div(
            middle.log_softmax(-1), soft, reduction="batchmean"
        )

    return Target(Deep(), blobs(classes=4, samples=96), training_step=step)


@pair(
    "auxiliary-loss",
    level="warn",
    source="https://arxiv.org/abs/1706.05098 (multi-task learning)",
    where="value",
)
def only_the_first_of_several_losses(broken: bool) -> Target:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp(classes=16)
            self.kind, self.value = nn.Linear(16, 4), nn.Linear(16, 1)

        def forward(self, x, kinds, values):
            h = self.body(x).relu()
            losses = {
                "kind": F.cross_entropy(self.kind(h), kinds),
                "value_loss": F.mse_loss(self.value(h)[:, 0], values),
            }
            return {"loss": losses["kind"] if broken else losses["kind"] + losses["value_loss"], **losses}

    x, y = blobs(classes=4, samples=96).dataset.tensors
    values = x[:, :2].sum(1)
    values = (values - values.mean()) / values.std()
    return Target(Two(), loader(x, y, values), training_step=lambda model, batch: model(*batch))
