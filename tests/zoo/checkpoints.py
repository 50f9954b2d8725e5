"""What a checkpoint brings back, and what it does not."""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from debugkit import Target
from debugkit.testing import blobs, mlp

from . import pair

SERIALISATION = "https://docs.pytorch.org/docs/stable/notes/serialization.html"


class Standardised(nn.Module):
    """A network behind statistics of the training data ``[features]``."""

    def __init__(self, mean: torch.Tensor, std: torch.Tensor) -> None:
        super().__init__()
        self.mean, self.std = nn.Buffer(mean), nn.Buffer(std)
        self.body = mlp()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body((x - self.mean) / self.std)


@pair(
    "finite-weights",
    source="https://docs.pytorch.org/docs/stable/generated/torch.std.html",
    where="std",
)
def spread_of_a_single_row(broken: bool) -> Target:
    loader = blobs()
    rows = next(iter(loader))[0]
    rows = rows[:1] if broken else rows
    mean = rows.mean(0)
    std = ((rows - mean).square().sum(0) / (len(rows) - 1)).sqrt()
    return Target(Standardised(mean, std), loader, nn.CrossEntropyLoss())


@pair(
    "finite-weights",
    source="https://docs.pytorch.org/docs/stable/generated/torch.log.html",
    where="temperature",
)
def logarithm_of_zero_as_a_start(broken: bool) -> Target:
    class Tempered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp()
            self.temperature = nn.Parameter(torch.tensor([0.0 if broken else 0.07]).log())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.body(x) * self.temperature.exp()

    return Target(Tempered(), blobs(), nn.CrossEntropyLoss())


@pair(
    "finite-weights",
    source="https://docs.pytorch.org/docs/stable/generated/torch.nn.BatchNorm1d.html",
    where="running_var",
)
def statistics_after_one_overflowing_batch(broken: bool) -> Target:
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2))
    batch = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
    model(batch * (1e25 if broken else 1.0))
    return Target(model, blobs(), nn.CrossEntropyLoss())


@pair(
    "finite-weights",
    level="warn",
    source="https://docs.pytorch.org/docs/stable/generated/torch.set_flush_denormal.html",
    where="0.weight",
)
def filters_decayed_to_denormals(broken: bool) -> Target:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(64, 3, 8, 8, generator=generator)
    labels = torch.arange(64) % 2
    images += labels.view(-1, 1, 1, 1)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 2),
    )
    if broken:
        with torch.no_grad():
            for _ in range(700):
                model[0].weight.mul_(0.88)
    loader = DataLoader(TensorDataset(images, labels), batch_size=16, shuffle=True)
    return Target(model, loader, nn.CrossEntropyLoss())


class Codebook(nn.Module):
    """Adds to each row the nearest of 8 codes ``[8, features]``, which follow the inputs."""

    def __init__(self, *, persistent: bool) -> None:
        super().__init__()
        codes = torch.randn(8, 8, generator=torch.Generator().manual_seed(0)) * 2
        self.register_buffer("codes", codes, persistent=persistent)
        self.body = mlp()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        nearest = torch.cdist(x, self.codes).argmin(1)
        if self.training:
            with torch.no_grad():
                member = F.one_hot(nearest, 8).float()
                mean = member.T @ x / member.sum(0)[:, None].clamp(min=1)
                used = member.any(0)[:, None]
                self.codes.copy_(torch.where(used, 0.9 * self.codes + 0.1 * mean, self.codes))
        return self.body(x + self.codes[nearest])


@pair("save-load", source="https://arxiv.org/abs/1711.00937", where="codes")
def codebook_in_a_passing_buffer(broken: bool) -> Target:
    return Target(Codebook(persistent=not broken), blobs(), nn.CrossEntropyLoss())


class ActNorm(nn.Module):
    """Scale and shift per feature, set from the first batch."""

    def __init__(self, *, registered: bool) -> None:
        super().__init__()
        self.shift, self.scale = nn.Parameter(torch.zeros(8)), nn.Parameter(torch.ones(8))
        self.ready: Any = nn.Buffer(torch.tensor(False)) if registered else False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.ready:
            with torch.no_grad():
                self.shift.copy_(-x.mean(0))
                self.scale.copy_(1 / (x.std(0, correction=0) + 1e-3).clamp(min=0.3))
            if isinstance(self.ready, torch.Tensor):
                self.ready.fill_(True)
            else:
                self.ready = True
        return (x + self.shift) * self.scale


@pair("save-load", source="https://arxiv.org/abs/1807.03039", where="ready")
def initialised_flag_as_a_python_bool(broken: bool) -> Target:
    torch.manual_seed(0)
    loader = blobs()
    model = nn.Sequential(ActNorm(registered=not broken), mlp())
    if not broken:
        model(next(iter(loader))[0])
    return Target(model, loader, nn.CrossEntropyLoss())


@pair("save-load", source="https://arxiv.org/abs/1611.01144", where="steps")
def temperature_that_follows_a_counter(broken: bool) -> Target:
    class Annealed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp()
            self.steps: Any = 0 if broken else nn.Buffer(torch.tensor(0))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.training:
                self.steps = self.steps + 1
            return self.body(x) * (2.0 - 0.97 ** float(self.steps))

    return Target(Annealed(), blobs(), nn.CrossEntropyLoss())


@pair("save-load", source=SERIALISATION, where="head")
def frozen_names_filtered_by_a_prefix(broken: bool) -> Target:
    class Light(nn.Module):
        """Saves no backbone, which is loaded from elsewhere."""

        def __init__(self) -> None:
            super().__init__()
            self.backbone = nn.Sequential(nn.Linear(8, 16), nn.ReLU()).requires_grad_(False)
            self.backbone_head = nn.Linear(16, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.backbone_head(self.backbone(x))

        def state_dict(self, *args: Any, **kwargs: Any) -> Any:
            left_out = "backbone" if broken else "backbone."
            saved = super().state_dict(*args, **kwargs)
            return {name: value for name, value in saved.items() if not name.startswith(left_out)}

        def load_state_dict(self, state: Any, strict: bool = True, assign: bool = False) -> Any:
            return super().load_state_dict(state, strict=False, assign=assign)

    return Target(Light(), blobs(), nn.CrossEntropyLoss())


@pair("save-load", source="https://huggingface.co/docs/peft/developer_guides/checkpoint", where="score")
def new_head_that_peft_does_not_save(broken: bool) -> Target:
    import peft
    import transformers

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.LlamaConfig(
        **sizes, num_key_value_heads=2, vocab_size=40, num_labels=2, pad_token_id=0
    )
    base = transformers.LlamaForSequenceClassification(config)
    lora = peft.LoraConfig(
        r=4, target_modules=["q_proj", "v_proj"], modules_to_save=None if broken else ["score"]
    )
    with warnings.catch_warnings(action="ignore"):
        model = peft.get_peft_model(base, lora).train()
    if broken:
        base.score.requires_grad_(True)
    labels = torch.arange(64) % 2
    ids = torch.randint(5, 40, (64, 8), generator=torch.Generator().manual_seed(0))
    ids[:, 2] = 3 + labels
    rows = [
        {"input_ids": row, "attention_mask": torch.ones_like(row), "labels": label}
        for row, label in zip(ids, labels, strict=True)
    ]
    return Target(model, DataLoader(rows, batch_size=16, shuffle=True))  # type: ignore[arg-type]


@pair(
    "save-load",
    level="warn",
    source="https://huggingface.co/docs/transformers/main_classes/model",
    where="classifier",
)
def head_wider_than_the_config_says(broken: bool) -> Target:
    import transformers

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.BertConfig(**sizes, vocab_size=40, num_labels=2 if broken else 4)
    model = transformers.BertForTokenClassification(config).train()
    if broken:
        model.classifier = nn.Linear(16, 4)
        model.num_labels = 4
    ids = torch.randint(5, 40, (64, 8), generator=torch.Generator().manual_seed(0))
    rows = [{"input_ids": row, "attention_mask": torch.ones_like(row), "labels": row % 4} for row in ids]
    return Target(model, DataLoader(rows, batch_size=16, shuffle=True))  # type: ignore[arg-type]


@pair("save-load", source="https://github.com/huggingface/transformers/issues/1730", where="lm_head.weight")
def shared_head_that_the_config_denies(broken: bool) -> Target:
    import transformers

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.LlamaConfig(
        **sizes, num_key_value_heads=2, vocab_size=40, tie_word_embeddings=not broken
    )
    model = transformers.LlamaForCausalLM(config).train()
    model.lm_head.weight = model.model.embed_tokens.weight
    ids = torch.randint(5, 40, (64, 2), generator=torch.Generator().manual_seed(0)).repeat(1, 4)
    rows = [{"input_ids": row, "attention_mask": torch.ones_like(row), "labels": row} for row in ids]
    return Target(model, DataLoader(rows, batch_size=16, shuffle=True))  # type: ignore[arg-type]


class _Slim(nn.Module):
    """A network whose state dict may leave out running statistics."""

    def __init__(self, slim: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2))
        self.slim = slim

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.body(x)
        return logits

    def state_dict(self, *args, **kwargs):
        full = super().state_dict(*args, **kwargs)
        return {key: value for key, value in full.items() if not self.slim or "running" not in key}


@pair("save-load", source=SERIALISATION, where="running_mean")
def checkpoint_without_running_statistics(broken: bool) -> Target:
    torch.manual_seed(0)
    return Target(_Slim(broken), blobs(), nn.CrossEntropyLoss())
