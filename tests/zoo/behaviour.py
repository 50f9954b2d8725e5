"""Models that behave wrongly for the moment."""

from __future__ import annotations

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
