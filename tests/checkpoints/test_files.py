import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from debugkit import UsageError
from debugkit.checkpoints.checkpoint import open_checkpoint
from debugkit.checkpoints.files import read_path


def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "a.weight": torch.randn(40, 32),
        "a.bias": torch.randn(40),
        "half": torch.randn(32, 32).half(),
        "brain": torch.randn(33, 32).bfloat16(),
        "double": torch.randn(2, 32, dtype=torch.float64),
        "ids": torch.arange(5),
        "flag": torch.tensor([True, False]),
        "scalar": torch.tensor(3.0),
        "none": torch.empty(0, 3),
    }


def same(stored: np.ndarray, tensor: torch.Tensor) -> bool:
    if tensor.dtype is torch.bfloat16:
        return bool((stored == tensor.view(torch.int16).numpy().view(np.uint16)).all())
    return stored.shape == tuple(tensor.shape) and bool((stored == tensor.numpy()).all())


def check(path: Path, wanted: dict[str, torch.Tensor]) -> None:
    found = {tensor.name: tensor for tensor in read_path(path)}
    assert set(found) == set(wanted)
    for name, tensor in wanted.items():
        assert found[name].shape == tuple(tensor.shape)
        assert found[name].dtype == str(tensor.dtype).removeprefix("torch.")
        assert found[name].nbytes == tensor.nbytes
        assert same(found[name].load(), tensor), name


def sharded(folder: Path) -> None:
    save_file({"x.10.weight": torch.ones(2, 2)}, folder / "m-1.safetensors")
    save_file({"x.2.weight": torch.zeros(2, 2)}, folder / "m-2.safetensors")
    owners = {"x.10.weight": "m-1.safetensors", "x.2.weight": "m-2.safetensors"}
    (folder / "m.safetensors.index.json").write_text(json.dumps({"weight_map": owners}))


def test_every_type_of_a_safetensors_file_is_read(tmp_path: Path) -> None:
    save_file(tensors(), tmp_path / "model.safetensors")
    check(tmp_path / "model.safetensors", tensors())
    check(tmp_path, tensors())


@pytest.mark.parametrize("nest", [None, "state_dict", "model", "model_state_dict"])
def test_a_state_dict_is_read_bare_or_nested(tmp_path: Path, nest: str | None) -> None:
    held = tensors() if nest is None else {nest: tensors(), "epoch": 3, "optimizer": {"state": {}}}
    torch.save(held, tmp_path / "last.ckpt")
    check(tmp_path / "last.ckpt", tensors())
    check(tmp_path, tensors())


def test_the_old_format_of_torch_is_read(tmp_path: Path) -> None:
    torch.save(tensors(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    check(tmp_path / "old.pt", tensors())


def test_views_and_transposed_tensors_of_a_state_dict_are_read(tmp_path: Path) -> None:
    whole = torch.randn(40, 64)
    torch.save({"t": whole.T, "slice": whole[3:7, 8:24], "whole": whole}, tmp_path / "m.pt")
    check(tmp_path / "m.pt", {"t": whole.T, "slice": whole[3:7, 8:24], "whole": whole})


def test_shards_come_in_the_order_of_depth(tmp_path: Path) -> None:
    sharded(tmp_path)
    assert [tensor.name for tensor in read_path(tmp_path)] == ["x.2.weight", "x.10.weight"]


def test_shards_of_pickles_are_read(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2, 2)}, tmp_path / "pytorch_model-1.bin")
    torch.save({"b": torch.zeros(2, 2)}, tmp_path / "pytorch_model-2.bin")
    owners = {"a": "pytorch_model-1.bin", "b": "pytorch_model-2.bin"}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": owners}))
    check(tmp_path, {"a": torch.ones(2, 2), "b": torch.zeros(2, 2)})


def test_of_two_formats_safetensors_is_taken(tmp_path: Path) -> None:
    torch.save({"b": torch.zeros(2, 2)}, tmp_path / "pytorch_model.bin")
    save_file({"a": torch.zeros(2, 2)}, tmp_path / "model.safetensors")
    assert [tensor.name for tensor in read_path(tmp_path)] == ["a"]


def refused(path: Path) -> str:
    with pytest.raises(UsageError) as caught:
        open_checkpoint(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    assert "no file or folder" in refused(tmp_path / "absent")
    assert "holds no weights" in refused(tmp_path)


def test_a_corrupt_or_cut_off_file_is_said(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file(tensors(), file)
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    assert "is cut off" in refused(file)
    for content in (b"", b"abc", b"\xff" * 100, whole[:40], (20).to_bytes(8, "little") + b"{" * 40):
        file.write_bytes(content)
        assert "no safetensors file" in refused(file)


def test_a_cut_off_state_dict_is_said(tmp_path: Path) -> None:
    file = tmp_path / "m.pt"
    torch.save(tensors(), file)
    file.write_bytes(file.read_bytes()[:-200])
    assert "m.pt" in refused(file)


def test_a_missing_or_cut_off_shard_is_said(tmp_path: Path) -> None:
    sharded(tmp_path)
    shard = tmp_path / "m-2.safetensors"
    shard.write_bytes(shard.read_bytes()[:-4])
    assert "is cut off" in refused(tmp_path)
    shard.unlink()
    assert "the shard `m-2.safetensors`" in refused(tmp_path)


def test_an_index_that_names_what_is_not_there_is_said(tmp_path: Path) -> None:
    sharded(tmp_path)
    index = tmp_path / "m.safetensors.index.json"
    owners = json.loads(index.read_text())["weight_map"]
    index.write_text(json.dumps({"weight_map": owners | {"y": "m-1.safetensors"}}))
    assert "says that `y` is in `m-1.safetensors`" in refused(tmp_path)
    index.write_text("[]")
    assert "no index of shards" in refused(tmp_path)


class _Code:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("code was run",)


@pytest.mark.parametrize("held", [{"a": _Code()}, _Code()])
def test_a_pickle_that_needs_code_is_refused(
    tmp_path: Path, held: object, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(held, tmp_path / "m.pt")
    assert "more than weights" in refused(tmp_path / "m.pt")
    (tmp_path / "plain.bin").write_bytes(pickle.dumps(held))
    assert "plain.bin" in refused(tmp_path / "plain.bin")
    assert "code was run" not in capsys.readouterr().out


def test_a_pickle_without_weights_is_said(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "m.pt")
    assert "no state dict" in refused(tmp_path / "m.pt")


def test_several_files_without_an_index_are_not_guessed(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_file({name: torch.zeros(2, 2)}, tmp_path / f"{name}.safetensors")
    assert "name one of them" in refused(tmp_path)


def test_gguf_is_read_and_dequantised(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    values = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    packed = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tensor("blk.0.attn_q.weight", packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("blk.0.attn_k.weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = open_checkpoint(tmp_path)
    assert [(one.name, one.unjudged) for one in found.matrices] == [
        ("blk.0.attn_q.weight", "quantised (Q8_0)"),
        ("blk.0.attn_k.weight", ""),
    ]
    assert np.allclose(found.read("blk.0.attn_q.weight"), values, atol=0.05)
    assert (found.read("blk.0.attn_k.weight") == values).all()
    (tmp_path / "m.gguf").write_bytes((tmp_path / "m.gguf").read_bytes()[:40])
    assert "no GGUF file" in refused(tmp_path / "m.gguf")
