"""Parameters that get no gradient."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from debugkit import Target
from debugkit.testing import blobs, mlp

from . import pair

KARPATHY = "https://karpathy.github.io/2019/04/25/recipe/"
HUMBATOVA = "Humbatova et al. 2020, https://arxiv.org/abs/1910.11015"
AUTOGRAD = "https://docs.pytorch.org/docs/stable/notes/autograd.html"


class Two(nn.Module):
    """An encoder and a head, joined by ``join``."""

    def __init__(self, join=torch.relu) -> None:
        super().__init__()
        self.encoder = nn.Linear(8, 16)
        self.head = nn.Linear(16, 2)
        self.join = join

    def forward(self, x):
        return self.head(self.join(self.encoder(x)))


def classifier(model: nn.Module) -> Target:
    return Target(model, blobs(), nn.CrossEntropyLoss())


@pair("missing-gradients", source=KARPATHY, where="encoder")
def detach_between_encoder_and_head(broken: bool) -> Target:
    return classifier(Two((lambda h: h.detach().relu()) if broken else torch.relu))


@pair("missing-gradients", source=HUMBATOVA, where="encoder")
def data_attribute_in_forward(broken: bool) -> Target:
    return classifier(Two((lambda h: h.data.relu()) if broken else torch.relu))


@pair("missing-gradients", source=HUMBATOVA, where="encoder")
def numpy_in_forward(broken: bool) -> Target:
    return classifier(Two((lambda h: torch.from_numpy(h.detach().numpy()).relu()) if broken else torch.relu))


@pair("missing-gradients", source=AUTOGRAD, where="encoder")
def no_grad_around_the_encoder(broken: bool) -> Target:
    class Net(Two):
        def forward(self, x):
            with torch.set_grad_enabled(not broken):
                h = self.encoder(x)
            return self.head(h.relu())

    return classifier(Net())


@pair("missing-gradients", source=HUMBATOVA, where="encoder")
def argmax_before_an_embedding(broken: bool) -> Target:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Linear(8, 16)
            self.codes = nn.Embedding(16, 8)
            self.head = nn.Linear(8, 2)

        def forward(self, x):
            scores = self.encoder(x)
            chosen = self.codes(scores.argmax(-1)) if broken else scores.softmax(-1) @ self.codes.weight
            return self.head(chosen)

    return classifier(Net())


@pair("missing-gradients", source=AUTOGRAD, where="encoder")
def rounding_without_a_straight_through_estimator(broken: bool) -> Target:
    def quantise(h):
        rounded = torch.round(h * 4) / 4
        return rounded if broken else h + (rounded - h).detach()

    return classifier(Two(quantise))


@pair("loss-connected", source=HUMBATOVA)
def loss_rebuilt_from_a_number(broken: bool) -> Target:
    def loss(logits, y):
        value = F.cross_entropy(logits, y)
        return torch.tensor(value.item(), requires_grad=True) if broken else value

    return Target(mlp(), blobs(), loss)


@pair("missing-gradients", source=KARPATHY, where="hidden[0]")
def layers_in_a_plain_list(broken: bool) -> Target:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layers = [nn.Linear(8, 8), nn.Linear(8, 8)]
            self.hidden = layers if broken else nn.ModuleList(layers)
            self.head = nn.Linear(8, 2)

        def forward(self, x):
            for layer in self.hidden:
                x = layer(x).relu()
            return self.head(x)

    return classifier(Net())


@pair("missing-gradients", source=KARPATHY, where="'a'")
def layers_in_a_plain_dict(broken: bool) -> Target:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layers = {"a": nn.Linear(8, 8)}
            self.branches = layers if broken else nn.ModuleDict(layers)
            self.head = nn.Linear(8, 2)

        def forward(self, x):
            return self.head(self.branches["a"](x).relu())

    return classifier(Net())


@pair("missing-gradients", source=HUMBATOVA, where="gradients.py")
def layer_created_in_forward(broken: bool) -> Target:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Linear(8, 16)
            self.head = None if broken else nn.Linear(16, 2)

        def forward(self, x):
            head = self.head or nn.Linear(16, 2)
            return head(self.encoder(x).relu())

    return classifier(Net())


@pair("missing-gradients", source="https://github.com/huggingface/peft/issues/1142", where="body")
def reentrant_checkpoint_with_frozen_inputs(broken: bool) -> Target:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Linear(8, 16).requires_grad_(False)
            self.body = nn.Linear(16, 16)
            self.head = nn.Linear(16, 2)

        def forward(self, x):
            return self.head(checkpoint(self.body, self.embed(x), use_reentrant=broken).relu())

    return classifier(Net())


@pair("missing-gradients", source=HUMBATOVA, where="layers.3")
def last_layer_left_out_of_the_loop(broken: bool) -> Target:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))
            self.head = nn.Linear(8, 2)

        def forward(self, x):
            for layer in self.layers[:-1] if broken else self.layers:
                x = x + layer(x).relu()
            return self.head(x)

    return classifier(Net())


@pair("missing-gradients", source=HUMBATOVA, where="second")
def branch_whose_output_is_dropped(broken: bool) -> Target:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(8, 16)
            self.second = nn.Linear(8, 16)
            self.head = nn.Linear(16, 2)

        def forward(self, x):
            one, two = self.first(x), self.second(x)
            return self.head((one if broken else one + two).relu())

    return classifier(Net())


@pair(
    "missing-gradients",
    level="warn",
    source="AUTOTRAINER, https://doi.org/10.1109/ICSE43902.2021.00043",
    where="0",
)
def relu_that_never_fires(broken: bool) -> Target:
    model = mlp()
    if broken:
        model[0].bias.data.fill_(-100.0)
    return classifier(model)


@pair("missing-gradients", source="TrainCheck, forum-84911: https://arxiv.org/abs/2506.14813")
def everything_frozen(broken: bool) -> Target:
    return classifier(mlp().requires_grad_(not broken))


@pair("missing-gradients", source=AUTOGRAD, where="encoder")
def target_network_trick_on_the_wrong_side(broken: bool) -> Target:
    class Siamese(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Linear(8, 16)
            self.predictor = nn.Linear(16, 16)

        def forward(self, x):
            return self.encoder(x)

    def step(model, batch):
        x, _ = batch
        view = model(x + 0.01)
        online = model.predictor(view.detach() if broken else view)
        goal = model(x).detach()
        return 1 - F.cosine_similarity(online, goal).mean()

    return Target(Siamese(), blobs(), training_step=step)
