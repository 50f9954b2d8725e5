"""Optimizers that hold the wrong tensors, or have the wrong settings."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from debugkit import Target
from debugkit.testing import blobs, mlp

from . import pair

OPTIM = "https://docs.pytorch.org/docs/stable/optim.html"
DECOUPLED = "Loshchilov & Hutter, https://arxiv.org/abs/1711.05101"
HUMBATOVA = "Humbatova et al. 2020, https://arxiv.org/abs/1910.11015"
DEEPCHECKER = "TheDeepChecker, https://arxiv.org/abs/2204.00694"


def sentences(vocabulary: int = 24, samples: int = 64) -> DataLoader:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(samples) % 2
    x = torch.randint(0, vocabulary // 2, (samples, 6), generator=generator) + y[:, None] * (vocabulary // 2)
    return DataLoader(TensorDataset(x, y), batch_size=16, shuffle=True)


class Words(nn.Module):
    """A bag of words."""

    def __init__(self, vocabulary: int = 24) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, 16)
        self.norm = nn.LayerNorm(16)
        self.hidden = nn.Linear(16, 32)
        self.head = nn.Linear(32, 2)

    def forward(self, x):
        return self.head(self.hidden(self.norm(self.words(x).mean(1))).relu())


def pictures(samples: int = 32) -> DataLoader:
    y = torch.arange(samples) % 2
    noise = torch.randn(samples, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    x = noise * 0.3 + torch.linspace(-1, 1, 8)[None, None, None] * (2 * y - 1)[:, None, None, None]
    return DataLoader(TensorDataset(x, y), batch_size=8, shuffle=True)


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU()
        )
        self.fc = nn.Linear(8, 2)

    def forward(self, x):
        return self.fc(self.features(x).mean((2, 3)))


def target(model, loader, optimizer, **more) -> Target:
    return Target(model, loader, more.pop("loss", nn.CrossEntropyLoss()), optimizer=optimizer, **more)


@pair("optimizer-coverage", source="https://discuss.pytorch.org/t/84911", where="fc")
def pretrained_head_replaced_after_the_optimizer(broken: bool) -> Target:
    model = Convolutions()
    model.fc = nn.Linear(8, 10)
    early = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model.fc = nn.Linear(8, 2)
    return target(model, pictures(), early if broken else torch.optim.AdamW(model.parameters(), lr=1e-3))


@pair(
    "optimizer-coverage", source="https://huggingface.co/docs/transformers/main_classes/model", where="words"
)
def vocabulary_resized_after_the_optimizer(broken: bool) -> Target:
    model = Words(20)
    early = torch.optim.AdamW(model.parameters(), lr=1e-3)
    larger = nn.Embedding(24, 16)
    larger.weight.data[:20] = model.words.weight.data
    model.words = larger
    return target(model, sentences(), early if broken else torch.optim.AdamW(model.parameters(), lr=1e-3))


@pair("optimizer-coverage", source="https://discuss.pytorch.org/t/84911", where="frozen")
def only_the_frozen_body_in_the_optimizer(broken: bool) -> Target:
    model = Words()
    for part in (model.words, model.norm, model.hidden):
        part.requires_grad_(False)
    chosen = [p for p in model.parameters() if p.requires_grad != broken]
    return target(model, sentences(), torch.optim.AdamW(chosen, lr=1e-2))


@pair("optimizer-coverage", source=HUMBATOVA, where="hidden")
def layer_left_out_of_the_groups(broken: bool) -> Target:
    model = Words()
    parts = [model.words, model.norm, model.head, *([] if broken else [model.hidden])]
    groups = [{"params": part.parameters()} for part in parts]
    return target(model, sentences(), torch.optim.AdamW(groups, lr=1e-3))


@pair("optimizer-coverage", source=OPTIM, where="lacks `0`")
def low_rank_update_added_after_the_optimizer(broken: bool) -> Target:
    class Adapted(nn.Module):
        def __init__(self, base: nn.Linear) -> None:
            super().__init__()
            self.base = base.requires_grad_(False)
            self.lora_a = nn.Linear(8, 4, bias=False)
            self.lora_b = nn.Linear(4, 32, bias=False)
            nn.init.zeros_(self.lora_b.weight)

        def forward(self, x):
            return self.base(x) + self.lora_b(self.lora_a(x))

    model = mlp()
    early = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model[0] = Adapted(model[0])
    return target(model, blobs(), early if broken else torch.optim.AdamW(model.parameters(), lr=1e-3))


@pair("optimizer-coverage", source=OPTIM, where="loss_fn.scale")
def temperature_of_the_loss_is_not_trained(broken: bool) -> Target:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, logits, y):
            return F.cross_entropy(self.scale.exp() * logits, y)

    model, loss = mlp(), Scaled()
    held = [*model.parameters(), *([] if broken else loss.parameters())]
    return target(model, blobs(), torch.optim.AdamW(held, lr=1e-3), loss=loss)


@pair("optimizer-coverage", source=OPTIM, where="twice")
def copy_of_the_model_tied_by_its_data(broken: bool) -> Target:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right, self.head = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(32, 2)
            if broken:
                self.right.weight.data = self.left.weight.data
            else:
                self.right.weight = self.left.weight

        def forward(self, x):
            return self.head(torch.cat([self.left(x), self.right(x.flip(0)).flip(0)], 1).relu())

    model = Pair()
    return target(model, blobs(), torch.optim.SGD(model.parameters(), lr=0.05))


@pair("learning-rate", source=HUMBATOVA, where="optimizer")
def rate_of_zero_from_a_config(broken: bool) -> Target:
    model = Words()
    rate = float(int(3e-4)) if broken else 3e-4
    return target(model, sentences(), torch.optim.AdamW(model.parameters(), lr=rate))


@pair("learning-rate", level="warn", source="https://stackoverflow.com/q/48934338", where="Adam")
def rate_of_sgd_given_to_adam(broken: bool) -> Target:
    model = Convolutions()
    return target(model, pictures(), torch.optim.Adam(model.parameters(), lr=0.5 if broken else 1e-3))


@pair("learning-rate", level="warn", source=OPTIM, where="betas")
def betas_in_the_wrong_order(broken: bool) -> Target:
    model = Words()
    betas = (0.999, 0.9) if broken else (0.9, 0.999)
    return target(model, sentences(), torch.optim.AdamW(model.parameters(), lr=1e-3, betas=betas))


@pair("learning-rate", level="warn", source=DEEPCHECKER, where="eps")
def eps_larger_than_the_gradients(broken: bool) -> Target:
    model = Words()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, eps=10.0 if broken else 1e-8)
    return target(model, sentences(), optimizer)


@pair("learning-rate", source="https://github.com/pytorch/pytorch/issues/147437", where="eps")
def adam_in_pure_half_precision(broken: bool) -> Target:
    def step(model, batch):
        x, y = batch
        return F.cross_entropy(model(x.to(model[0].weight.dtype)).float(), y)

    model = mlp(hidden=64)
    with torch.no_grad():
        model[0].bias[0] = -100.0  # one dead unit, whose gradients are 0
    model = model.half() if broken else model
    return Target(model, blobs(), training_step=step, optimizer=torch.optim.Adam(model.parameters(), lr=1e-3))


@pair("learning-rate", level="warn", source=DEEPCHECKER, where="maximize")
def maximised_cross_entropy(broken: bool) -> Target:
    model = Convolutions()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, maximize=broken)
    return target(model, pictures(), optimizer)


@pair(
    "weight-decay",
    level="warn",
    source="https://github.com/huggingface/transformers/issues/35927",
    where="norm",
)
def one_group_with_strong_decay(broken: bool) -> Target:
    model = Words()
    vectors = [p for p in model.parameters() if p.ndim < 2]
    matrices = [p for p in model.parameters() if p.ndim > 1]
    groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.1 if broken else 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.1)
    return target(model, sentences(), optimizer, training_steps=5000)


@pair("weight-decay", level="warn", source=DECOUPLED, where="Adam")
def l2_where_decoupled_decay_was_meant(broken: bool) -> Target:
    model = Convolutions()
    kind = torch.optim.Adam if broken else torch.optim.AdamW
    return target(model, pictures(), kind(model.parameters(), lr=1e-3, weight_decay=0.01))


@pair("weight-decay", level="warn", source=DEEPCHECKER, where="outweighs")
def decay_a_thousand_times_too_strong(broken: bool) -> Target:
    model = mlp(hidden=64)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=1e-3, momentum=0.9, weight_decay=5.0 if broken else 5e-4
    )
    return target(model, blobs(), optimizer)


@pair(
    "weight-decay", level="warn", source="https://github.com/huggingface/transformers/issues/10598", where="1"
)
def names_that_match_no_norm(broken: bool) -> Target:
    model = nn.Sequential(nn.Linear(8, 32), nn.LayerNorm(32), nn.ReLU(), nn.Linear(32, 2))
    spared = ("LayerNorm.weight", "bias") if broken else ("1.weight", "bias")
    named = list(model.named_parameters())
    groups = [
        {"params": [p for n, p in named if not any(s in n for s in spared)], "weight_decay": 0.05},
        {"params": [p for n, p in named if any(s in n for s in spared)], "weight_decay": 0.0},
    ]
    return target(model, blobs(), torch.optim.AdamW(groups, lr=2e-3), training_steps=2000)
