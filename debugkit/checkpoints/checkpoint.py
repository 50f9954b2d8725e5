"""A checkpoint whose tensors are read one at a time: what the moment after training hands over."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from debugkit.checkpoints.adapter import merged, updates
from debugkit.checkpoints.description import describe
from debugkit.checkpoints.files import read_facts, read_path
from debugkit.checkpoints.tensor import StoredTensor
from debugkit.errors import UsageError
from debugkit.evidence import root
from debugkit.weights.matrix import Array, Matrix, SkippedMatrix
from debugkit.weights.settings import Settings


@root
@dataclass(frozen=True)
class Checkpoint:
    """The weight matrices of a checkpoint, none of them read yet.

    Attributes:
        name: as reports show it.
        matrices: in the checkpoint's order.
        skipped: tensors with two or more dimensions that stand for no matrix, or can't be read as one.
        settings: how the spectra are computed.
        tensors: all tensors, vectors and whole numbers too.
    """

    name: str
    matrices: tuple[Matrix, ...]
    skipped: tuple[SkippedMatrix, ...] = ()
    settings: Settings = field(default_factory=Settings)
    tensors: tuple[StoredTensor, ...] = field(default=(), repr=False)

    def read(self, name: str) -> Array:
        """The values of one tensor; bfloat16 as its bits.

        Raises:
            KeyError: there is no such tensor.
        """
        return {tensor.name: tensor for tensor in self.tensors}[name].load()


def open_checkpoint(
    path: str | Path, base: str | Path | None = None, settings: Settings | None = None
) -> Checkpoint:
    """Describe the tensors of a safetensors, PyTorch or GGUF file, a folder of one or of shards, or a LoRA adapter.

    Args:
        path: a file or a folder.
        base: the base model of an adapter, which is merged with it; without it an adapter is read as itself.
        settings: how the spectra are computed.

    Raises:
        UsageError: there is nothing to read, or it can't be read; the message says what and why.
    """
    place = Path(path).expanduser()
    folder = place if place.is_dir() else place.parent
    tensors, config = read_path(place), read_facts(folder)
    adapter = read_facts(folder, "adapter_config.json")
    is_adapter = any(".lora_A" in tensor.name for tensor in tensors) and bool(adapter)
    if base is not None and not is_adapter:
        raise UsageError(f"`{path}` is no LoRA adapter, so there is nothing to merge with `--base {base}`")
    name = str(path)
    if base is not None:
        tensors = merged(read_path(Path(base).expanduser()), tensors, adapter)
        config, name = read_facts(Path(base).expanduser()), f"{path} on {base}"
    elif is_adapter:
        tensors = updates(tensors, adapter)
    matrices, skipped = describe(tensors, config)
    if is_adapter and base is None:
        matrices = [_as_update(matrix) for matrix in matrices]
    return Checkpoint(name, tuple(matrices), tuple(skipped), settings or Settings(), tuple(tensors))


def _as_update(matrix: Matrix) -> Matrix:
    changes: dict[str, Any] = {"unjudged": matrix.unjudged.removeprefix("quantised (").removesuffix(")")}
    return replace(matrix, **changes)
