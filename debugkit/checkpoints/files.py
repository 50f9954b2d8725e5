"""Finding the tensors of a path: one file, or a folder with one file, shards or a LoRA adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from debugkit.checkpoints.gguf_file import read_gguf
from debugkit.checkpoints.pickle_file import read_pickle
from debugkit.checkpoints.safetensors_file import read_safetensors
from debugkit.checkpoints.tensor import StoredTensor, in_depth
from debugkit.errors import UsageError

_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_NAMES = ("model", "pytorch_model", "adapter_model", "diffusion_pytorch_model")


def read_path(path: Path) -> list[StoredTensor]:
    """The tensors of a file or folder; of two formats in a folder, safetensors is taken.

    Raises:
        UsageError: there is nothing to read, or it can't be read.
    """
    try:
        if path.is_dir():
            path = _in_folder(path)
        elif not path.exists():
            raise UsageError(f"there is no file or folder `{path}`")
        found = _read_index(path) if path.suffix == ".json" else _read_file(path)
    except OSError as error:
        raise UsageError(f"`{path}` can't be read: {error.strerror or error}") from error
    if not found:
        raise UsageError(f"`{path}` holds no tensors")
    return found if path.suffix in (*_PICKLES, ".gguf") else in_depth(found)


def read_facts(folder: Path, name: str = "config.json") -> dict[str, Any]:
    """A JSON file beside the weights; empty where there is none that can be read."""
    try:
        facts = json.loads((folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


def _in_folder(folder: Path) -> Path:
    for formats in ((".safetensors",), _PICKLES, (".gguf",)):
        files = sorted(file for file in folder.iterdir() if file.suffix in formats and file.is_file())
        indices = sorted(
            file
            for file in folder.glob("*.index.json")
            if file.name.removesuffix(".index.json").endswith(formats)
        )
        if indices:
            return indices[0]
        files = [
            file
            for file in files
            if file.stem not in ("optimizer", "scheduler", "training_args", "rng_state")
        ]
        named = [file for file in files if file.stem in _NAMES]
        if len(named or files) == 1:
            return (named or files)[0]
        if files:
            names = ", ".join(f"`{file.name}`" for file in files[:3])
            raise UsageError(
                f"`{folder}` has {len(files)} weight files and no index ({names}, ...); name one of them"
            )
    raise UsageError(f"`{folder}` holds no weights: no .safetensors, .bin, .pt, .pth, .ckpt or .gguf file")


def _read_file(path: Path) -> list[StoredTensor]:
    if path.suffix == ".gguf":
        return read_gguf(path)
    if path.suffix in _PICKLES:
        return read_pickle(path)
    with path.open("rb") as file:
        head = file.read(9)
    if head[:4] == b"GGUF":
        return read_gguf(path)
    if head[:2] == b"PK" or head[:1] == b"\x80":
        return read_pickle(path)
    return read_safetensors(path)


def _read_index(index: Path) -> list[StoredTensor]:
    """All tensors that an index names, each from the shard that it says."""
    try:
        owners = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards = list(dict.fromkeys(map(str, owners.values())))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"`{index}` is no index of shards: it has no `weight_map`") from error
    found: list[StoredTensor] = []
    for shard in shards:
        path = index.parent / shard
        if not path.is_file():
            raise UsageError(f"the shard `{shard}` that `{index}` names is missing")
        there = {tensor.name: tensor for tensor in _read_file(path)}
        wanted = [name for name, owner in owners.items() if owner == shard]
        for name in wanted:
            if name not in there:
                raise UsageError(f"`{index}` says that `{name}` is in `{shard}`, but it isn't there")
        found += [tensor for name, tensor in there.items() if owners.get(name) == shard]
    return found
