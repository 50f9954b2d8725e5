"""Models that do not hold the weights they were meant to start from."""

from __future__ import annotations

import shutil
import tempfile
import warnings
import weakref
from pathlib import Path
from typing import Any

import torch
from torch import nn

from debugkit import Target
from debugkit.testing import blobs

from . import pair
from .adapters import texts
from .weights import learned

LOADING = (
    "https://docs.pytorch.org/docs/stable/generated/torch.nn.Module.html#torch.nn.Module.load_state_dict"
)


def saved_bert(folder: str, layers: int = 2) -> Any:
    import transformers

    torch.manual_seed(1)
    config = transformers.BertConfig(
        hidden_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=32,
        vocab_size=40,
    )
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    transformers.BertModel(config).save_pretrained(folder)
    torch.manual_seed(2)
    return transformers


def a_folder() -> str:
    folder = tempfile.mkdtemp()
    weakref.finalize(texts, shutil.rmtree, folder, True)
    return folder


@pair("pretrained-loaded", source="https://huggingface.co/docs/transformers/model_doc/auto", where="bert.")
def built_from_a_config_alone(broken: bool) -> Target:
    folder = a_folder()
    transformers = saved_bert(folder)
    kind = transformers.AutoModelForSequenceClassification
    if broken:
        model = kind.from_config(transformers.AutoConfig.from_pretrained(folder))
    else:
        model = kind.from_pretrained(folder)
    return Target(model.train(), texts())


@pair("pretrained-loaded", source="https://github.com/pytorch/examples/issues/1029", where="module.")
def saved_behind_a_data_parallel_wrapper(broken: bool) -> Target:
    folder = a_folder()
    transformers = saved_bert(folder)
    file = Path(folder) / "model.safetensors"
    from safetensors.torch import load_file, save_file

    state = {f"module.{name}": value for name, value in load_file(file).items()}
    save_file(state, file)
    config = transformers.AutoConfig.from_pretrained(folder)
    model = transformers.BertForSequenceClassification(config).train()
    if not broken:
        state = {f"bert.{name.removeprefix('module.')}": value for name, value in state.items()}
    missing = model.load_state_dict(state, strict=False).missing_keys
    assert len(missing) == 2 or broken
    return Target(model, texts())


@pair("pretrained-loaded", level="warn", source=LOADING, where="layer.2")
def deeper_than_its_checkpoint(broken: bool) -> Target:
    folder = a_folder()
    transformers = saved_bert(folder, layers=2)
    config = transformers.AutoConfig.from_pretrained(folder)
    config.num_hidden_layers, config.num_labels = (4 if broken else 2), 2
    with warnings.catch_warnings(action="ignore"):
        model = transformers.BertForSequenceClassification.from_pretrained(folder, config=config)
    return Target(model.train(), texts())


@pair("pretrained-loaded", level="warn", source=LOADING, where="value")
def initialised_again_after_loading(broken: bool) -> Target:
    folder = a_folder()
    transformers = saved_bert(folder)
    model = transformers.BertForSequenceClassification.from_pretrained(folder).train()
    for name, part in model.named_modules():
        if isinstance(part, nn.Linear) and (name == "classifier" or (broken and name.endswith("value"))):
            nn.init.normal_(part.weight, std=0.02)
    return Target(model, texts())


class Block(nn.Module):
    """``x + last(relu(first(x)))``."""

    def __init__(self, width: int, seed: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(width, width), nn.Linear(width, width)
        with torch.no_grad():
            self.first.weight.copy_(learned(width, width, 2 * seed))
            self.last.weight.copy_(0.1 * learned(width, width, 2 * seed + 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.last(self.first(x).relu())


class Stack(nn.Module):
    """Six blocks."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(8, width), nn.Linear(width, 2)
        self.blocks = nn.ModuleList(Block(width, seed) for seed in range(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


@pair("pretrained-loaded", level="warn", source=LOADING, where="blocks.1")
def blocks_dropped_by_a_lenient_load(broken: bool) -> Target:
    torch.manual_seed(0)
    saved = Stack().state_dict()
    model = Stack()
    for block in model.blocks:
        block.first.reset_parameters()
        block.last.reset_parameters()
    if broken:
        renamed = {"blocks.1.": "stage.1.", "blocks.2.": "stage.2."}
        saved = {renamed.get(name[:9], name[:9]) + name[9:]: value for name, value in saved.items()}
    model.load_state_dict(saved, strict=False)
    return Target(model, blobs(), nn.CrossEntropyLoss())
