"""Schedules that do not fit their run."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim import lr_scheduler

from debugkit import Target
from debugkit.testing import blobs, mlp

from . import pair

HUMBATOVA = "Humbatova et al. 2020, https://arxiv.org/abs/1910.11015"
SCHEDULES = "https://huggingface.co/docs/transformers/main_classes/optimizer_schedules"
TORCH = "https://docs.pytorch.org/docs/stable/optim.html#how-to-adjust-learning-rate"


def scheduled(make, steps: int | None, optimizer=None, rate: float = 1e-3) -> Target:
    model = mlp()
    optimizer = (optimizer or torch.optim.AdamW)(model.parameters(), lr=rate)
    return Target(
        model,
        blobs(),
        nn.CrossEntropyLoss(),
        optimizer=optimizer,
        scheduler=make(optimizer),
        training_steps=steps,
    )


@pair("schedule", level="warn", source=SCHEDULES, where="warm-up")
def warm_up_longer_than_the_run(broken: bool) -> Target:
    from transformers import get_linear_schedule_with_warmup

    warm_up = 1000 if broken else 10
    return scheduled(lambda o: get_linear_schedule_with_warmup(o, warm_up, 2000 if broken else 120), 120)


@pair("schedule", source=SCHEDULES, where="never leaves 0")
def warm_up_by_integer_division(broken: bool) -> Target:
    def factor(step):
        return min(1, (step + 1) // 500) if broken else min(1.0, (step + 1) / 50)

    return scheduled(lambda o: lr_scheduler.LambdaLR(o, factor), 200)


@pair("schedule", level="warn", source=SCHEDULES, where="comes back")
def steps_counted_in_epochs(broken: bool) -> Target:
    from transformers import get_cosine_schedule_with_warmup

    total = 30 if broken else 2000  # 30 of 500 epochs
    return scheduled(lambda o: get_cosine_schedule_with_warmup(o, 5, total), 2000)


@pair("schedule", source=SCHEDULES, where="is 0")
def length_of_a_trial_run_kept(broken: bool) -> Target:
    from transformers import get_linear_schedule_with_warmup

    total = 50 if broken else 1000
    return scheduled(lambda o: get_linear_schedule_with_warmup(o, 5, total), 1000)


@pair("schedule", source=TORCH, where="negative")
def linear_decay_below_zero(broken: bool) -> Target:
    def factor(step):
        return 1 - step / 150 if broken else max(0.0, 1 - step / 400)

    return scheduled(lambda o: lr_scheduler.LambdaLR(o, factor), 400)


@pair(
    "schedule",
    source="https://docs.pytorch.org/docs/stable/generated/torch.optim.lr_scheduler.OneCycleLR.html",
    where="raises",
)
def one_cycle_shorter_than_the_run(broken: bool) -> Target:
    total = 60 if broken else 400
    return scheduled(
        lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.05, total_steps=total), 400, torch.optim.SGD, rate=0.05
    )


@pair("schedule", level="warn", source=HUMBATOVA, where="train nothing")
def accumulation_forgotten_in_the_length(broken: bool) -> Target:
    from transformers import get_polynomial_decay_schedule_with_warmup

    total = 400 if broken else 1000
    return scheduled(
        lambda o: get_polynomial_decay_schedule_with_warmup(o, 20, total, lr_end=0.0, power=1.0), 1000
    )


@pair("schedule", level="warn", source=HUMBATOVA, where="millionth")
def exponential_decay_per_step_and_too_steep(broken: bool) -> Target:
    gamma = 0.5 if broken else 0.998
    return scheduled(lambda o: lr_scheduler.ExponentialLR(o, gamma), 600)


@pair("optimizer-coverage", source=TORCH, where="scheduler")
def scheduler_of_the_optimizer_before(broken: bool) -> Target:
    model = mlp()
    first = torch.optim.SGD(model.parameters(), lr=0.05)
    second = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    scheduler = lr_scheduler.CosineAnnealingLR(first if broken else second, T_max=100)
    return Target(
        model, blobs(), nn.CrossEntropyLoss(), optimizer=second, scheduler=scheduler, training_steps=100
    )
