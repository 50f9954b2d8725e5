import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from debugkit import UsageError
from debugkit.checkpoints.checkpoint import open_checkpoint


def adapter(folder: Path, **config: object) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    a, b = torch.randn(4, 64), torch.randn(96, 4)
    stem = "base_model.model.model.layers.0.q_proj"
    folder.mkdir(exist_ok=True)
    save_file({f"{stem}.lora_A.weight": a, f"{stem}.lora_B.weight": b}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 8, **config}))
    return a, b


def base(folder: Path, name: str = "model.layers.0.q_proj.weight") -> torch.Tensor:
    folder.mkdir(exist_ok=True)
    weight = torch.randn(96, 64)
    save_file({name: weight, "model.norm.weight": torch.ones(64)}, folder / "model.safetensors")
    return weight


def test_as_itself_it_is_its_updates_without_a_verdict(tmp_path: Path) -> None:
    a, b = adapter(tmp_path / "adapter")
    found = open_checkpoint(tmp_path / "adapter")
    (matrix,) = found.matrices
    assert matrix.unjudged == "update of rank 4"
    assert np.allclose(matrix.load(), (2 * b @ a).numpy(), atol=1e-4)


@pytest.mark.parametrize("name", ["model.layers.0.q_proj.weight", "layers.0.q_proj.weight"])
@pytest.mark.parametrize("rslora", [False, True])
def test_merged_with_its_base(tmp_path: Path, name: str, rslora: bool) -> None:
    a, b = adapter(tmp_path / "adapter", use_rslora=rslora)
    weight = base(tmp_path / "base", name)
    found = open_checkpoint(tmp_path / "adapter", tmp_path / "base")
    (matrix,) = found.matrices
    assert not matrix.unjudged
    assert np.allclose(matrix.load(), (weight + (4 if rslora else 2) * b @ a).numpy(), atol=1e-4)


def test_what_does_not_fit_is_said(tmp_path: Path) -> None:
    adapter(tmp_path / "adapter")
    base(tmp_path / "base", "something.else.weight")
    with pytest.raises(UsageError, match="which the base doesn't have"):
        open_checkpoint(tmp_path / "adapter", tmp_path / "base")
    with pytest.raises(UsageError, match="no LoRA adapter"):
        open_checkpoint(tmp_path / "base", tmp_path / "base")
    adapter(tmp_path / "adapter", use_dora=True)
    with pytest.raises(UsageError, match="DoRA"):
        open_checkpoint(tmp_path / "adapter", tmp_path / "base")


def test_as_peft_merges_it(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 48), torch.nn.ReLU(), torch.nn.Linear(48, 64))
    torch.save(model.state_dict(), tmp_path / "base.pt")
    config = peft.LoraConfig(r=4, lora_alpha=16, target_modules=["0", "2"], init_lora_weights=False)
    tuned = peft.get_peft_model(model, config)
    tuned.save_pretrained(tmp_path / "adapter")
    merged = tuned.merge_and_unload().state_dict()
    found = open_checkpoint(tmp_path / "adapter", tmp_path / "base.pt")
    for matrix in found.matrices:
        assert np.allclose(matrix.load(), merged[matrix.name].numpy(), atol=1e-5)
    assert len(found.matrices) == 2
