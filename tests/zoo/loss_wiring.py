"""Losses that compare the wrong things, or lead nowhere."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from debugkit import Target
from debugkit.testing import blobs, mlp

from . import pair

BROADCAST = "https://discuss.pytorch.org/t/target-size-that-is-different-to-the-input-size/66305"
CE_DOCS = "https://docs.pytorch.org/docs/stable/generated/torch.nn.CrossEntropyLoss.html"
DQN = "https://docs.pytorch.org/tutorials/intermediate/reinforcement_q_learning.html"
HUMBATOVA = "Humbatova et al. 2020, https://arxiv.org/abs/1910.11015"
DEEPCHECKER = "https://arxiv.org/abs/2204.00694"


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def loader(*columns: torch.Tensor, batch_size: int = 16) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*columns), batch_size=batch_size, shuffle=True)


def regression() -> DataLoader[Any]:
    x = noise(128, 8)
    return loader(x, torch.tanh(x[:, 0] + 0.5 * x[:, 1]) + 0.1 * noise(128, seed=1))


def tagged(length: int = 7, samples: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(1, 25, (samples, length), generator=torch.Generator().manual_seed(0))
    return ids, ids % 5


class Tagger(nn.Module):
    """A recurrent tagger with five tags."""

    def __init__(self, batch_first: bool = True) -> None:
        super().__init__()
        self.embed = nn.Embedding(25, 16)
        self.rnn = nn.GRU(16, 16, batch_first=batch_first)
        self.head = nn.Linear(16, 5)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.rnn(self.embed(ids))[0])


# --- loss-shape


@pair("loss-shape", source=BROADCAST, where="[N, 1]")
def target_unsqueezed_for_flat_outputs(broken: bool) -> Target:
    def step(model: nn.Module, batch: Any) -> torch.Tensor:
        x, y = batch
        return F.mse_loss(model(x).squeeze(), y.unsqueeze(1) if broken else y)

    return Target(mlp(classes=1), regression(), training_step=step)


@pair("loss-shape", source=DQN, where="smooth_l1_loss")
def returns_without_the_axis_of_the_actions(broken: bool) -> Target:
    state, following = noise(128, 8), noise(128, 8, seed=1)
    action = torch.arange(128) % 3
    reward = state[torch.arange(128), action]

    def step(model: nn.Module, batch: Any) -> torch.Tensor:
        s, a, r, after = batch
        value = model(s).gather(1, a.unsqueeze(1))
        with torch.no_grad():
            best = r + 0.5 * model(after).max(1).values
        return F.smooth_l1_loss(value, best if broken else best.unsqueeze(1))

    return Target(mlp(classes=3), loader(state, action, reward, following), training_step=step)


@pair("loss-shape", source=BROADCAST, where="mul")
def sample_weights_against_a_column_of_losses(broken: bool) -> Target:
    x = noise(128, 8)
    y, weight = torch.tanh(x[:, :1]), torch.rand(128, generator=torch.Generator().manual_seed(2)) + 0.5

    def step(model: nn.Module, batch: Any) -> torch.Tensor:
        x, y, weight = batch
        each = F.smooth_l1_loss(model(x), y, reduction="none")
        return (each * (weight if broken else weight[:, None])).mean()

    return Target(mlp(classes=1), loader(x, y, weight), training_step=step)


@pair("loss-shape", source=BROADCAST, where="loss_wiring.py")
def images_that_lost_their_channel(broken: bool) -> Target:
    shapes = torch.linspace(-1, 1, 6)[None, :, None] * noise(96, 1, 1) + noise(96, 1, 1, seed=1)
    images = shapes * torch.linspace(0.5, 1.5, 6) + 0.3 * noise(96, 6, 6, seed=2)
    model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 3, padding=1))

    def step(model: nn.Module, batch: Any) -> torch.Tensor:
        (images,) = batch
        restored = model(images.unsqueeze(1))
        return (restored if broken else restored.squeeze(1)).sub(images).abs().mean()

    return Target(model, loader(images), training_step=step)


@pair("loss-shape", source=CE_DOCS, where="several positions")
def maps_of_logits_reshaped(broken: bool) -> Target:
    images = noise(48, 3, 6, 6)
    classes = (images[:, 0] > 0).long() + (images[:, 1] > 0).long()
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 1))

    def loss(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        rows = logits.reshape(-1, 3) if broken else logits.permute(0, 2, 3, 1).reshape(-1, 3)
        return F.cross_entropy(rows, y.reshape(-1))

    return Target(model, loader(images, classes, batch_size=8), loss)


@pair(
    "loss-shape",
    source="https://docs.pytorch.org/docs/stable/generated/torch.nn.GRU.html",
    where="labels of another",
)
def time_major_outputs_against_batch_major_tags(broken: bool) -> Target:
    class Net(Tagger):
        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            scores = super().forward(ids.t())
            return scores if broken else scores.transpose(0, 1)

    def loss(scores: torch.Tensor, tags: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(scores.reshape(-1, 5), tags.reshape(-1))

    return Target(Net(batch_first=False), loader(*tagged()), loss)


@pair(
    "loss-shape",
    source="https://discuss.pytorch.org/t/packedsequence-for-seq2seq-model/3907",
    where="other samples",
)
def lengths_sorted_without_their_labels(broken: bool) -> Target:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(25, 16)
            self.rnn = nn.GRU(16, 16, batch_first=True)
            self.head = nn.Linear(16, 3)

        def forward(self, ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
            lengths, order = lengths.sort(descending=True)
            packed = nn.utils.rnn.pack_padded_sequence(self.embed(ids[order]), lengths, batch_first=True)
            scores = self.head(self.rnn(packed)[1][-1])
            return scores if broken else scores[order.argsort()]

    ids, _ = tagged(length=9, samples=96)
    lengths = 3 + torch.arange(96) * 5 % 7
    ids = ids.masked_fill(torch.arange(9) >= lengths[:, None], 0)
    step = lambda model, batch: F.cross_entropy(model(batch[0], batch[1]), batch[2])  # noqa: E731
    return Target(Net(), loader(ids, lengths, ids[:, 0] % 3), training_step=step)


@pair("loss-shape", source=DEEPCHECKER, where="other samples")
def inputs_shuffled_and_labels_not(broken: bool) -> Target:
    def step(model: nn.Module, batch: Any) -> torch.Tensor:
        x, y = batch
        order = torch.randperm(len(x))
        return F.cross_entropy(model(x[order]), y if broken else y[order])

    return Target(mlp(classes=4), blobs(classes=4), training_step=step)


@pair("loss-shape", level="warn", source=CE_DOCS, where="positions")
def as_many_positions_as_classes(broken: bool) -> Target:
    def step(model: nn.Module, batch: Any) -> torch.Tensor:
        ids, tags = batch
        scores = model(ids)
        return F.cross_entropy(scores if broken else scores.transpose(1, 2), tags)

    return Target(Tagger(), loader(*tagged(length=5)), training_step=step)


# --- loss-connected


@pair("loss-connected", source=HUMBATOVA, where="argmax")
def accuracy_as_the_loss(broken: bool) -> Target:
    def loss(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return 1 - (logits.argmax(1) == y).float().mean() if broken else F.cross_entropy(logits, y)

    return Target(mlp(), blobs(), loss)


@pair(
    "loss-connected",
    source="https://docs.pytorch.org/docs/stable/notes/autograd.html",
    where="gradients switched off",
)
def evaluation_helper_used_to_train(broken: bool) -> Target:
    def evaluate(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(model(x), y)

    def step(model: nn.Module, batch: Any) -> torch.Tensor:
        return (torch.no_grad()(evaluate) if broken else evaluate)(model, *batch)

    return Target(mlp(), blobs(), training_step=step)


@pair("loss-connected", source=HUMBATOVA, where="Python float")
def number_returned_for_the_log(broken: bool) -> Target:
    def step(model: nn.Module, batch: Any) -> Any:
        loss = F.cross_entropy(model(batch[0]), batch[1])
        return loss.item() if broken else loss

    return Target(mlp(), blobs(), training_step=step)


@pair("loss-connected", source="https://docs.pytorch.org/docs/stable/distributions.html", where="likelihood")
def log_probability_minimised(broken: bool) -> Target:
    def loss(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        likelihood = torch.distributions.Categorical(logits=logits).log_prob(y).mean()
        return likelihood if broken else -likelihood

    return Target(mlp(classes=3), blobs(96, classes=3), loss)


@pair(
    "loss-connected",
    source="https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.cosine_similarity.html",
    where="similarity",
)
def similarity_minimised(broken: bool) -> Target:
    x = noise(128, 8)
    y = torch.tanh(x[:, :4]) + 0.1 * noise(128, 4, seed=1)

    def step(model: nn.Module, batch: Any) -> torch.Tensor:
        similarity = F.cosine_similarity(model(batch[0]), batch[1]).mean()
        return similarity if broken else 1 - similarity

    return Target(mlp(classes=4), loader(x, y), training_step=step)


@pair("loss-connected", source="https://arxiv.org/abs/1606.04797", where="likelihood")
def overlap_minimised(broken: bool) -> Target:
    images = noise(64, 2, 6, 6)
    masks = (images[:, :1] + images[:, 1:] > 0.5).float()
    model = nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 1))

    def loss(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        inside = logits.sigmoid()
        overlap = 2 * (inside * y).sum() / (inside.sum() + y.sum() + 1)
        return overlap if broken else 1 - overlap

    return Target(model, loader(images, masks), loss)


@pair("loss-connected", source="https://github.com/huggingface/trl/issues/1493", where="NaN")
def average_over_no_sample(broken: bool) -> Target:
    x = noise(128, 8)
    y = (x[:, 0] > 0).long()
    known = torch.zeros(128) if broken else (torch.arange(128) % 4 != 0).float()

    def step(model: nn.Module, batch: Any) -> torch.Tensor:
        x, y, known = batch
        each = F.cross_entropy(model(x), y, reduction="none")
        return (each * known).sum() / known.sum()

    return Target(mlp(), loader(x, y, known), training_step=step)


@pair("loss-connected", source=DEEPCHECKER, where="multiplied by 0")
def weight_of_the_loss_never_set(broken: bool) -> Target:
    weights = {"classes": 0.0 if broken else 1.0}

    def step(model: nn.Module, batch: Any) -> torch.Tensor:
        return weights["classes"] * F.cross_entropy(model(batch[0]), batch[1])

    return Target(mlp(), blobs(), training_step=step)


@pair("loss-shape", source=BROADCAST, where="broadcast")
def forecast_as_long_as_the_batch(broken: bool) -> Target:
    """Series of 16 steps in batches of 16, so that a missing `squeeze(-1)` does not raise."""
    phase, pace = (
        6 * torch.rand(96, 1, generator=torch.Generator().manual_seed(0)),
        0.4 + noise(96, 1).sigmoid(),
    )
    waves = torch.sin(phase + pace * torch.arange(17))

    class Forecast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(1, 16, batch_first=True)
            self.head = nn.Linear(16, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out = self.head(self.rnn(x[..., None])[0])
            return out if broken else out.squeeze(-1)

    return Target(Forecast(), loader(waves[:, :-1], waves[:, 1:]), lambda p, y: (p - y).abs().mean())


@pair("loss-shape", source=HUMBATOVA, where="which label belongs")
def ages_averaged_before_they_are_compared(broken: bool) -> Target:
    """Whole numbers far above the first outputs, where absolute errors are linear."""
    x = noise(160, 6)
    ages = 25 + (x.sum(1) + x[:, 0].sin()).argsort().argsort() // 4
    model = nn.Sequential(mlp(6, 1), nn.Flatten(0))
    with torch.no_grad():
        model[0][2].bias.fill_(20.0)  # type: ignore[index,union-attr]

    def loss(guess: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        error = guess.mean() - y.float().mean() if broken else guess - y
        return error.abs().mean()

    return Target(model, loader(x, ages), loss)


@pair("loss-connected", source="https://arxiv.org/abs/2008.02189", where="likelihood")
def probability_of_the_label_in_place_of_its_cost(broken: bool) -> Target:
    x = noise(160, 8)
    grade = torch.bucketize(x[:, 0] + x[:, 1], torch.tensor([-0.9, 0.0, 0.9]))
    cost = (torch.arange(4)[:, None] - torch.arange(4)).abs().float()

    def loss(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        weights = F.one_hot(y, 4) if broken else cost[y]
        return (logits.softmax(1) * weights).sum(1).mean()

    return Target(mlp(classes=4), loader(x, grade), loss)


@pair("logits-vs-probs", level="warn", source=DEEPCHECKER, where="were clamped")
def clamp_in_place_of_a_sigmoid(broken: bool) -> Target:
    images = noise(64, 2, 6, 6)
    masks = (images[:, :1] + images[:, 1:] > 0).float()
    model = nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 1))
    return Target(
        model,
        loader(images, masks),
        lambda p, y: F.binary_cross_entropy(p.clamp(0, 1) if broken else p.sigmoid(), y),
    )
