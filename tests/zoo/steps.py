"""Steps that move too much, too little, nothing, or what should stay."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import nn

from debugkit import Target
from debugkit.testing import blobs, mlp

from . import pair
from .optimizers import HUMBATOVA, Convolutions, Words, pictures, sentences
from .weights import body

UPDATE = "https://cs231n.github.io/neural-networks-3/#ratio"
ZERO_GRAD = "https://docs.pytorch.org/docs/stable/generated/torch.optim.Optimizer.zero_grad.html"
FROZEN = "https://github.com/facebookresearch/fairseq/issues/4702"
BFLOAT16 = "https://github.com/pytorch/ao/pull/1124"
MUON = "https://github.com/KellerJordan/Muon/issues/54"
DPO = "https://github.com/huggingface/trl/issues/1104"


@pair("update-ratio", source="https://arxiv.org/abs/1801.06146", where="words")
def layer_wise_rates_that_vanish(broken: bool) -> Target:
    model = Words()
    decay = 1e-4 if broken else 0.8
    parts = [model.head, model.hidden, model.norm, model.words]
    groups = [{"params": part.parameters(), "lr": 1e-2 * decay**depth} for depth, part in enumerate(parts)]
    return Target(
        model, sentences(), nn.CrossEntropyLoss(), optimizer=torch.optim.AdamW(groups, weight_decay=0.0)
    )


@pair("update-ratio", source="https://arxiv.org/abs/1801.06146", where="2")
def layer_wise_rates_by_whole_numbers(broken: bool) -> Target:
    model = mlp()
    share = 10 // 100 if broken else 10 / 100
    groups = [
        {"params": model[0].parameters(), "lr": 1e-2},
        {"params": model[2].parameters(), "lr": 1e-2 * share},
    ]
    return Target(
        model, blobs(), nn.CrossEntropyLoss(), optimizer=torch.optim.AdamW(groups, weight_decay=0.0)
    )


@pair("update-ratio", level="warn", source="https://arxiv.org/abs/1905.05583", where="optimizer")
def trained_body_at_the_rate_of_a_fresh_one(broken: bool) -> Target:
    model = body()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-2 if broken else 1e-4, weight_decay=0.0)
    return Target(model, blobs(), nn.CrossEntropyLoss(), optimizer=optimizer)


class Skipping(torch.optim.Optimizer):
    """Plain SGD that takes only tensors of up to two dimensions."""

    def __init__(self, params, lr: float, most: int) -> None:
        super().__init__(params, {"lr": lr})
        self.most = most

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and parameter.ndim <= self.most:
                    parameter -= group["lr"] * parameter.grad


@pair("update-ratio", source=MUON, where="features")
def own_optimizer_that_skips_convolutions(broken: bool) -> Target:
    model = Convolutions()
    optimizer = Skipping(model.parameters(), 0.1, 2 if broken else 4)
    return Target(model, pictures(), nn.CrossEntropyLoss(), optimizer=optimizer)


@pair("update-ratio", level="warn", source=UPDATE, where="overwrites")
def rate_too_high_for_small_weights(broken: bool) -> Target:
    model = Convolutions()
    loss = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=6.0 if broken else 0.05)
    return Target(model, pictures(), loss, optimizer=optimizer)


@pair("update-ratio", level="warn", source=UPDATE, where="optimizer")
def rate_of_a_fine_tuning_for_sgd_from_scratch(broken: bool) -> Target:
    model = mlp(hidden=64)
    optimizer = torch.optim.SGD(model.parameters(), lr=2e-7 if broken else 5e-2)
    return Target(model, blobs(), nn.CrossEntropyLoss(), optimizer=optimizer)


def in_own_precision(model, batch):
    x, y = batch
    return F.cross_entropy(model(x.to(next(model.parameters()).dtype)).float(), y)


@pair("precision-loss", source=BFLOAT16, where="bfloat16")
def fine_tuned_in_pure_bfloat16(broken: bool) -> Target:
    model = mlp(hidden=64)
    model = model.bfloat16() if broken else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5, weight_decay=0.01)
    return Target(model, blobs(), training_step=in_own_precision, optimizer=optimizer)


@pair("precision-loss", source="https://github.com/pytorch/pytorch/issues/120376", where="float16")
def fine_tuned_in_pure_float16(broken: bool) -> Target:
    model = Convolutions()
    model = model.half() if broken else model
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    return Target(model, pictures(), training_step=in_own_precision, optimizer=optimizer)


@pair("precision-loss", level="warn", source=BFLOAT16, where="bfloat16")
def trained_in_bfloat16_at_a_moderate_rate(broken: bool) -> Target:
    model = mlp(hidden=64)
    model = model.bfloat16() if broken else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=2.5e-4, weight_decay=0.0)
    return Target(model, blobs(), training_step=in_own_precision, optimizer=optimizer)


class Master(torch.optim.Optimizer):
    """Adam on copies in single precision."""

    def __init__(self, params, lr: float, copies: bool) -> None:
        super().__init__(params, {"lr": lr, "copies": copies})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                exact = state.get("exact", parameter.float())
                exact = exact - group["lr"] * parameter.grad.float().sign()
                parameter.copy_(exact)
                if group["copies"]:
                    state["exact"] = exact


@pair("precision-loss", source=BFLOAT16, where="round away")
def sign_descent_that_forgets_its_exact_copies(broken: bool) -> Target:
    model = mlp(hidden=64).bfloat16()
    optimizer = Master(model.parameters(), 3e-5, copies=not broken)
    return Target(model, blobs(), training_step=in_own_precision, optimizer=optimizer)


def frozen_after_a_step(to_none: bool) -> Target:
    """A model whose body is frozen after its first step, with the gradients cleared in one way or the other."""
    model, loader = mlp(), blobs()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    x, y = next(iter(loader))
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=to_none)
    model[0].requires_grad_(False)
    return Target(model, loader, nn.CrossEntropyLoss(), optimizer=optimizer)


@pair("frozen-parameters", source=FROZEN, where="0.weight")
def momentum_moves_what_was_frozen(broken: bool) -> Target:
    return frozen_after_a_step(to_none=not broken)


class Decaying(torch.optim.Optimizer):
    """Descent along the sign, which decays every tensor, or only those with a gradient."""

    def __init__(self, params, lr: float, weight_decay: float, every: bool) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        self.every = every

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None and not self.every:
                    continue
                parameter *= 1 - group["lr"] * group["weight_decay"]
                if parameter.grad is not None:
                    parameter -= group["lr"] * parameter.grad.sign()


@pair("frozen-parameters", source=MUON, where="without a gradient")
def own_optimizer_that_decays_everything(broken: bool) -> Target:
    model = Words()
    model.hidden.requires_grad_(False)
    optimizer = Decaying(model.parameters(), 1e-3, 0.01, every=broken)
    return Target(model, sentences(), nn.CrossEntropyLoss(), optimizer=optimizer)


@pair("frozen-parameters", source=ZERO_GRAD, where="hook")
def frozen_by_a_mask_under_decay(broken: bool) -> Target:
    model = Words()
    if broken:
        model.words.weight.register_hook(lambda gradient: gradient * 0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    return Target(model, sentences(), nn.CrossEntropyLoss(), optimizer=optimizer)


@pair("frozen-parameters", source=DPO, where="shares its memory")
def reference_model_that_is_the_policy(broken: bool) -> Target:
    class Preference(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.policy = mlp()
            self.reference = copy.deepcopy(self.policy)
            for own, other in zip(self.reference.parameters(), self.policy.parameters(), strict=True):
                if broken:
                    own.data = other.data
                own.requires_grad_(False)

        def forward(self, x):
            return 2 * self.policy(x) - self.reference(x)

    model = Preference()
    optimizer = torch.optim.AdamW(model.policy.parameters(), lr=1e-3)
    return Target(model, blobs(), nn.CrossEntropyLoss(), optimizer=optimizer)


@pair("frozen-parameters", source="https://github.com/pytorch/pytorch/pull/45595", where="max_norm")
def frozen_table_that_renormalises_itself(broken: bool) -> Target:
    model = Words()
    torch.nn.init.normal_(model.words.weight, std=1.0, generator=torch.Generator().manual_seed(0))
    model.words.max_norm = 1.0 if broken else None
    model.words.weight.requires_grad_(not broken)
    held = [p for p in model.parameters() if p.requires_grad]
    return Target(
        model,
        sentences(),
        nn.CrossEntropyLoss(),
        optimizer=torch.optim.AdamW(held, lr=1e-3, weight_decay=0.0),
    )


@pair(
    "frozen-parameters",
    level="warn",
    source=HUMBATOVA,
    where="bias",
)
def filter_on_a_name_that_no_head_has(broken: bool) -> Target:
    model = mlp(hidden=512)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name == "2.bias" if broken else name.startswith("2"))
    held = [p for p in model.parameters() if p.requires_grad]
    return Target(model, blobs(), nn.CrossEntropyLoss(), optimizer=torch.optim.AdamW(held, lr=1e-3))
