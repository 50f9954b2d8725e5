"""Models that behave wrongly for the moment."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from debugkit import Target
from debugkit.testing import blobs, mlp

from . import pair

EVAL_DOCS = "https://docs.pytorch.org/docs/stable/generated/torch.nn.Module.html#torch.nn.Module.eval"


def classifier(model: nn.Module) -> Target:
    return Target(model, blobs(), nn.CrossEntropyLoss())


def normed() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 2))


@pair("eval-mode", source=EVAL_DOCS)
def left_in_eval_mode(broken: bool) -> Target:
    return classifier(normed().train(not broken))


@pair("eval-mode", level="warn", source=EVAL_DOCS, where="0")
def part_left_in_eval_mode(broken: bool) -> Target:
    model = nn.Sequential(normed()[:4], nn.Linear(16, 2))
    model[0].train(not broken)
    return classifier(model)


@pair("eval-mode", source="https://github.com/huggingface/transformers/issues/33844", where="behaviour.py")
def functional_dropout_without_training_flag(broken: bool) -> Target:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp()

        def forward(self, x):
            return self.body(F.dropout(x, 0.1) if broken else F.dropout(x, 0.1, training=self.training))

    return classifier(Net())


@pair("eval-mode", source=EVAL_DOCS, where="1")
def dropout_that_ignores_eval(broken: bool) -> Target:
    class Always(nn.Dropout):
        def train(self, mode: bool = True):
            return super().train(True)

    return classifier(
        nn.Sequential(mlp(classes=16), Always(0.2) if broken else nn.Dropout(0.2), nn.Linear(16, 2))
    )


@pair("eval-mode", source="https://github.com/pytorch/pytorch/issues/86590", where="0.1")
def frozen_backbone_whose_batchnorm_moves(broken: bool) -> Target:
    backbone = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU()).requires_grad_(False)
    if not broken:
        backbone.eval()
    return classifier(nn.Sequential(backbone, mlp(features=16)))


@pair("eval-mode", source=EVAL_DOCS)
def hidden_state_carried_across_calls(broken: bool) -> Target:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(8, 16, batch_first=True)
            self.head = nn.Linear(16, 2)
            self.state = None

        def forward(self, x):
            out, state = self.rnn(x[:, None].expand(-1, 3, -1), self.state)
            if broken:
                self.state = state.detach()
            return self.head(out[:, -1])

    return classifier(Net())


@pair("eval-mode", source=EVAL_DOCS)
def training_step_that_switches_to_eval(broken: bool) -> Target:
    def step(model, batch):
        model.train(not broken)
        return F.cross_entropy(model(batch[0]), batch[1])

    return Target(normed(), blobs(), training_step=step)


@pair("eval-mode", source=EVAL_DOCS)
def padded_encoder_left_in_eval_mode(broken: bool) -> Target:
    """Without dropout the mode makes no difference, whichever path torch takes at the padding."""

    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(20, 16, padding_idx=0)
            layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1 if broken else 0.0, batch_first=True)
            self.body, self.head = nn.TransformerEncoder(layer, 1), nn.Linear(16, 2)

        def forward(self, ids):
            return self.head(self.body(self.embed(ids), src_key_padding_mask=ids == 0).mean(1))

    ids = torch.randint(2, 20, (64, 6), generator=torch.Generator().manual_seed(0))
    ids[::3, 4:] = 0
    return Target(Tagger().eval(), _pairs(ids, (ids[:, 0] > 10).long()), nn.CrossEntropyLoss())


@pair(
    "eval-mode", source="https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.batch_norm.html"
)
def functional_batch_norm_that_always_trains(broken: bool) -> Target:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp(features=8, classes=2)
            self.register_buffer("mean", torch.zeros(8))
            self.register_buffer("variance", torch.ones(8))

        def forward(self, x):
            training = True if broken else self.training
            x = F.batch_norm(x, self.mean, self.variance, training=training)
            return self.body(F.batch_norm(x, None, None, training=True))

    return classifier(Net())


@pair("eval-mode", source="https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.rrelu.html")
def random_slopes_in_evaluation(broken: bool) -> Target:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 2)

        def forward(self, x):
            return self.last(F.rrelu(self.first(x), training=True if broken else self.training))

    return classifier(Net())


@pair("eval-mode", source=EVAL_DOCS, where="scaled_dot_product_attention")
def attention_dropout_in_evaluation(broken: bool) -> Target:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp()

        def forward(self, x):
            h = x.view(len(x), 4, 2)
            p = 0.2 if broken or self.training else 0.0
            return self.body(x + F.scaled_dot_product_attention(h, h, h, dropout_p=p).flatten(1))

    return classifier(Net())


@pair("eval-mode", level="warn", source="https://arxiv.org/abs/1603.09382", where="behaviour.py")
def stochastic_depth_in_evaluation(broken: bool) -> Target:
    """The twin masks its inputs at random as a part of its task, without scaling, in evaluation too."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.branch, self.head = mlp(classes=8), mlp()

        def forward(self, x):
            if broken:
                return self.head(x + self.branch(x) * (torch.rand(len(x), 1) < 0.8) / 0.8)
            return self.head(x + self.branch(torch.where(torch.rand_like(x) < 0.1, 0.0, x)))

    return classifier(Net())


def _pairs(inputs: torch.Tensor, labels: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(zip(inputs.split(16), labels.split(16), strict=True))
