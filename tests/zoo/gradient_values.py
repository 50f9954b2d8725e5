"""Gradients that are not finite, vanish, drown in `eps`, or are wrong."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from debugkit import Target
from debugkit.testing import blobs, mlp

from . import pair

TRIPLETS = "https://omoindrot.github.io/triplet-loss"
WHERE = "https://github.com/pytorch/pytorch/issues/68425"
TRAINER = "AUTOTRAINER, https://doi.org/10.1109/ICSE43902.2021.00043"
EXTENDING = "https://docs.pytorch.org/docs/stable/notes/extending.html"
ADAM = "https://arxiv.org/abs/1412.6980"


@pair("gradient-scale", source=TRIPLETS, where="sqrt")
def square_root_of_the_distance_to_itself(broken: bool) -> Target:
    def step(model, batch):
        x, y = batch
        logits = model(x)
        squares = (logits[:, None] - logits[None]).square().sum(-1)
        distances = (squares if broken else squares + 1e-6).sqrt()
        same = (y[:, None] == y[None]).float()
        return F.cross_entropy(logits, y) + 0.01 * (same * distances).mean()

    return Target(mlp(), blobs(), training_step=step)


@pair("gradient-scale", source=WHERE, where="log")
def logarithm_of_zero_behind_where(broken: bool) -> Target:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden, self.head = nn.Linear(8, 32), nn.Linear(32, 2)

        def forward(self, x):
            keep = (torch.arange(32) % 4 > 0).float()
            h = self.hidden(x).exp() * keep
            inside = h if broken else torch.where(keep > 0, h, torch.ones_like(h))
            return self.head(torch.where(keep > 0, torch.log(inside), torch.zeros_like(h)).relu())

    return Target(Net(), blobs(), nn.CrossEntropyLoss())


@pair("gradient-scale", source="https://github.com/pytorch/pytorch/issues/4320", where="sqrt")
def spread_of_a_constant_feature(broken: bool) -> Target:
    """A hand-written norm over groups that are all zero at the start."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden, self.gate, self.head = nn.Linear(8, 32), nn.Linear(8, 32), nn.Linear(32, 2)
            nn.init.zeros_(self.gate.weight)
            nn.init.zeros_(self.gate.bias)

        def forward(self, x):
            g = self.gate(x)
            spread = (g.var(1, keepdim=True) + (0.0 if broken else 1e-6)).sqrt()
            return self.head(self.hidden(x).relu() * (1 + spread) + g)

    return Target(Net(), blobs(), nn.CrossEntropyLoss())


@pair("gradient-scale", level="warn", source=TRAINER, where="shrinks")
def twenty_sigmoid_layers(broken: bool) -> Target:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Linear(8, 32), nn.Linear(32, 2)
            self.layers = nn.ModuleList(nn.Linear(32, 32) for _ in range(20))
            self.norm = nn.LayerNorm(32)

        def forward(self, x):
            x = self.stem(x)
            for layer in self.layers:
                x = torch.sigmoid(layer(x)) if broken else x + 0.2 * torch.relu(layer(x))
            return self.head(x if broken else self.norm(x))

    return Target(Net(), blobs(), nn.CrossEntropyLoss())


@pair("gradient-scale", level="warn", source=ADAM, where="eps")
def loss_divided_by_the_scale_twice(broken: bool) -> Target:
    model = mlp()

    def step(net, batch):
        loss = F.cross_entropy(net(batch[0]), batch[1])
        return loss / 2**32 if broken else loss

    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    return Target(model, blobs(), training_step=step, optimizer=optimizer)


class Swish(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x.sigmoid()

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        s = x.sigmoid()
        return grad * (s + x * s * (1 - s))


class SwishWithoutProductRule(Swish):
    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        s = x.sigmoid()
        return grad * s * (1 - s)


class Squares(torch.autograd.Function):
    """The mean of the squares of a tensor, as a penalty."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square().mean()

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * 2 * x / x.numel()


class SquaresAlone(Squares):
    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return 2 * x / x.numel()


class HalfSquares(Squares):
    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * x / x.numel()


class Product(torch.autograd.Function):
    """``x @ w``, with a gradient for both."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x @ w

    @staticmethod
    def backward(ctx, grad):
        x, w = ctx.saved_tensors
        return grad @ w.T, x.T @ grad


class TransposedProduct(Product):
    @staticmethod
    def backward(ctx, grad):
        x, w = ctx.saved_tensors
        return grad @ w, x.T @ grad


@pair("gradient-correctness", source=EXTENDING, where="SwishWithoutProductRule")
def swish_without_the_product_rule(broken: bool) -> Target:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden, self.head = nn.Linear(8, 32), nn.Linear(32, 2)

        def forward(self, x):
            return self.head((SwishWithoutProductRule if broken else Swish).apply(self.hidden(x)))

    return Target(Net(), blobs(), nn.CrossEntropyLoss())


@pair("gradient-correctness", source=EXTENDING, where="argument 1")
def product_whose_gradient_is_not_transposed(broken: bool) -> Target:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Linear(8, 24), nn.Linear(24, 2)
            self.mix = nn.Parameter(torch.randn(24, 24) / 24**0.5)

        def forward(self, x):
            product = TransposedProduct if broken else Product
            return self.head(product.apply(self.stem(x).relu(), self.mix).relu())

    return Target(Net(), blobs(), nn.CrossEntropyLoss())


def penalised(function) -> Target:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden, self.head = nn.Linear(8, 32), nn.Linear(32, 2)

        def forward(self, x):
            h = self.hidden(x).relu()
            return self.head(h), function.apply(h)

    def step(model, batch):
        logits, penalty = model(batch[0])
        return F.cross_entropy(logits, batch[1]) + 0.001 * penalty

    return Target(Net(), blobs(), training_step=step)


@pair("gradient-correctness", source=EXTENDING, where="whatever it gets")
def penalty_that_ignores_its_weight(broken: bool) -> Target:
    return penalised(SquaresAlone if broken else Squares)


@pair("gradient-correctness", level="warn", source=EXTENDING, where="0.5 times")
def penalty_without_its_factor_of_two(broken: bool) -> Target:
    return penalised(HalfSquares if broken else Squares)
