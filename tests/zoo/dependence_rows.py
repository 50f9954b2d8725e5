"""Samples that see each other, and inputs that change nothing."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from debugkit import Target
from debugkit.testing import blobs, mlp

from . import pair

VIEW = "https://github.com/Lightning-AI/pytorch-lightning/issues/1237"
BATCH_FIRST = "https://github.com/pytorch/pytorch/issues/63560"
RECIPE = "https://karpathy.github.io/2019/04/25/recipe/"
SOFTMAX_DIM = "https://docs.pytorch.org/docs/stable/generated/torch.nn.Softmax.html"
TAXONOMY = "https://arxiv.org/abs/1910.11015"


def signals(*shape: int, rows: int = 64, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise with a mean that tells the class."""
    y = torch.arange(rows) % 2
    x = torch.randn(rows, *shape, generator=torch.Generator().manual_seed(seed))
    return x + y.view(-1, *[1] * len(shape)) * 0.8, y


def loader(*tensors: torch.Tensor, size: int = 16) -> DataLoader[tuple[torch.Tensor, ...]]:
    return DataLoader(TensorDataset(*tensors), batch_size=size, shuffle=True)


def classifier(model: nn.Module, *shape: int, size: int = 16) -> Target:
    return Target(model, loader(*signals(*shape), size=size), nn.CrossEntropyLoss())


@pair("batch-independence", source=RECIPE, where="dependence_rows.py")
def view_where_a_permute_was_meant(broken: bool) -> Target:
    """Time first for the convolution, and then cut anew instead of turned back."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(6, 12), nn.Linear(12, 2)

        def forward(self, x):
            h = self.body(x).relu().permute(1, 0, 2)
            h = h.reshape(len(x), -1, 12) if broken else h.permute(1, 0, 2)
            return self.head(h.mean(1))

    return classifier(Net(), 10, 6)


@pair("batch-independence", source=BATCH_FIRST, where="body")
def transformer_layers_that_take_length_first(broken: bool) -> Target:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=not broken)
            self.body, self.head = (
                nn.TransformerEncoder(layer, 1, enable_nested_tensor=False),
                nn.Linear(8, 2),
            )

        def forward(self, x):
            return self.head(self.body(x).mean(1))

    return classifier(Net(), 5, 8)


@pair("batch-independence", source=SOFTMAX_DIM, where="softmax")
def attention_weights_over_the_batch(broken: bool) -> Target:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.score, self.value, self.head = nn.Linear(6, 1), nn.Linear(6, 8), nn.Linear(8, 2)

        def forward(self, x):
            weights = self.score(x).softmax(0 if broken else 1)
            return self.head((weights * self.value(x)).sum(1))

    return classifier(Net(), 7, 6)


@pair("batch-independence", source=RECIPE, where="`mul`")
def pooling_that_keeps_the_batch_statistics(broken: bool) -> Target:
    """A context vector for each image, from all of them."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
            self.gate, self.head = nn.Linear(8, 8), nn.Linear(8, 2)

        def forward(self, x):
            h = self.body(x)
            context = h.mean((0, 2, 3), keepdim=True) if broken else h.mean((2, 3), keepdim=True)
            gate = self.gate(context.flatten(1)).sigmoid()
            return self.head((h * gate[:, :, None, None]).mean((2, 3)))

    return classifier(Net(), 3, 8, 8)


@pair(
    "batch-independence",
    source="https://github.com/Lightning-Universe/lightning-bolts/issues/465",
    where="`linear`",
)
def batch_folded_into_channels(broken: bool) -> Target:
    """The twin is the same graph of operations with the samples kept apart; BatchNorm mixes it in train mode only."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.norm, self.head = (
                nn.Conv1d(1, 4, 3, padding=1),
                nn.BatchNorm1d(4),
                nn.Linear(32, 2),
            )
            self.across = nn.Conv1d(1, 1, 3, padding=1)

        def forward(self, x):
            h = self.norm(self.body(x[:, None])).relu().flatten(1)
            return self.head(
                self.across(h.T[:, None]).squeeze(1).T if broken else self.across(h[:, None]).squeeze(1)
            )

    return classifier(Net(), 8)


@pair("batch-independence", source=VIEW)
def distance_to_the_mean_of_the_batch(broken: bool) -> Target:
    """The twin returns similarities of all pairs, which is what contrastive losses take."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp(classes=8)

        def forward(self, x):
            z = F.normalize(self.body(x), dim=-1)
            return (
                torch.cdist(z, z.mean(0, keepdim=True)).expand(-1, 2) * torch.tensor([1.0, -1.0])
                if broken
                else 10 * z @ z.T
            )

    def contrast(scores, y):
        if broken:
            return F.cross_entropy(scores, y)
        return F.binary_cross_entropy_with_logits(scores, (y[:, None] == y).float())

    return Target(Net(), blobs(), contrast)


@pair("input-dependence", source=RECIPE, where="x")
def input_overwritten_by_noise_shape(broken: bool) -> Target:
    """A placeholder from a first test run of the network is still there."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
            self.head = nn.Linear(8, 2)

        def forward(self, x):
            if broken:
                x = torch.ones(x.shape)
            return self.head(self.body(x))

    return classifier(Net(), 3, 8, 8)


@pair("input-dependence", source=TAXONOMY, where="ids")
def every_token_looked_up_as_the_first_word(broken: bool) -> Target:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.body, self.head = (
                nn.Embedding(30, 16),
                nn.GRU(16, 16, batch_first=True),
                nn.Linear(16, 2),
            )

        def forward(self, ids):
            looked = self.embed(torch.zeros_like(ids) if broken else ids)
            return self.head(self.body(looked)[0][:, -1])

    ids = torch.randint(1, 30, (64, 9), generator=torch.Generator().manual_seed(1))
    return Target(Net(), loader(ids, (ids[:, -1] > 15).long()), nn.CrossEntropyLoss())


@pair("input-dependence", level="warn", source=TAXONOMY, where="numbers")
def second_branch_never_joined(broken: bool) -> Target:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.words, self.numbers = nn.EmbeddingBag(30, 8), nn.Linear(8, 8), nn.Linear(4, 8)
            self.head = nn.Linear(8 if broken else 16, 2)

        def forward(self, ids, numbers):
            h, z = self.words(self.embed(ids)).relu(), self.numbers(numbers).relu()
            return self.head(h if broken else torch.cat([h, z], 1))

    x, y = signals(4)
    ids = torch.randint(0, 15, (64, 6), generator=torch.Generator().manual_seed(1)) + 15 * y[:, None]

    def step(model, batch):
        return F.cross_entropy(model(batch[0], batch[1]), batch[2]) + 0.0 * model.numbers(batch[1]).sum()

    return Target(Net(), loader(ids, x, y), training_step=step)


@pair("input-dependence", level="warn", source=TAXONOMY, where="features")
def slice_that_drops_the_last_features(broken: bool) -> Target:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp(features=9 if broken else 12)

        def forward(self, x):
            return self.body(x[:, :-3] if broken else x)

    return classifier(Net(), 12)


@pair("input-dependence", level="warn", source=TAXONOMY, where="features")
def only_the_first_channel_is_read(broken: bool) -> Target:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(1 if broken else 3, 8, 3, stride=2)
            self.norm, self.head = nn.BatchNorm2d(8), nn.Linear(8, 2)

        def forward(self, x):
            return self.head(self.norm(self.first(x[:, :1] if broken else x)).relu().mean((2, 3)))

    return classifier(Net(), 3, 9, 9)


@pair("output-variety", source="https://stackoverflow.com/questions/33969059", where="input")
def score_normalised_over_one_unit(broken: bool) -> Target:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp(classes=1)

        def forward(self, input):
            score = self.body(input).squeeze(-1)
            if broken:
                return F.normalize(score[:, None], dim=1).abs().squeeze(1)
            return score.sigmoid()

    x, y = signals(8)
    return Target(Net(), loader(x, y.float()), nn.BCELoss())


@pair(
    "output-variety",
    source="https://docs.pytorch.org/docs/stable/generated/torch.nn.LayerNorm.html",
    where="norm",
)
def layer_norm_over_one_value(broken: bool) -> Target:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            width = 1 if broken else 8
            self.body, self.norm, self.head = nn.Linear(8, width), nn.LayerNorm(width), nn.Linear(width, 2)

        def forward(self, x):
            return self.head(self.norm(self.body(x)))

    return classifier(Net(), 8)


@pair("output-variety", source=TAXONOMY, where="act")
def saturated_bottleneck(broken: bool) -> Target:
    """Inputs of a thousand into a tanh: every unit is exactly 1 or -1, the same for all rows."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.act, self.head = nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 2)
            nn.init.constant_(self.scale.bias, 40.0 if broken else 0.0)

        def forward(self, x):
            return self.head(self.act(self.scale(x)))

    return classifier(Net(), 8)
