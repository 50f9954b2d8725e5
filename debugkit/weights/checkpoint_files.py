"""Tensors of a checkpoint on this machine, read one at a time."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")


class TensorFile(Protocol):
    """Tensors by name, and their shapes without reading them."""

    shapes: dict[str, tuple[int, ...]]

    def tensor(self, name: str) -> torch.Tensor:
        """Read one tensor."""


class _Safetensors:
    def __init__(self, files: list[Path], stack: ExitStack) -> None:
        from safetensors import SafetensorError, safe_open

        self.shapes: dict[str, tuple[int, ...]] = {}
        self._owners: dict[str, Any] = {}
        for file in files:
            try:
                held = stack.enter_context(safe_open(file, framework="pt"))
            except SafetensorError as error:
                raise ValueError(str(error)) from error
            for name in held.keys():  # noqa: SIM118 - no mapping
                self.shapes[name] = tuple(held.get_slice(name).get_shape())
                self._owners[name] = held

    def tensor(self, name: str) -> torch.Tensor:
        value: torch.Tensor = self._owners[name].get_tensor(name)
        return value


class _Pickled:
    def __init__(self, file: Path) -> None:
        held = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
        self._held = {name: value for name, value in held.items() if isinstance(value, torch.Tensor)}
        self.shapes = {name: tuple(value.shape) for name, value in self._held.items()}

    def tensor(self, name: str) -> torch.Tensor:
        return self._held[name]


def find_weights(name: str) -> Path | None:
    """The weights file of a checkpoint folder, or of a model in the hub's cache; nothing is fetched."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return next((folder / file for file in WEIGHTS if (folder / file).is_file()), None)
    if importlib.util.find_spec("huggingface_hub") is None:
        return None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = (try_to_load_from_cache(name, file) for file in WEIGHTS)
        return next((Path(path) for path in found if isinstance(path, str)), None)
    except HFValidationError:
        return None


@contextmanager
def open_weights(file: Path) -> Iterator[TensorFile]:
    """Open what :func:`find_weights` found.

    Raises:
        OSError, ValueError, ImportError: the file can't be read.
    """
    with ExitStack() as stack:
        if file.suffix == ".bin":
            yield _Pickled(file)
        elif file.suffix == ".json":
            parts = sorted(set(json.loads(file.read_text())["weight_map"].values()))
            yield _Safetensors([file.parent / part for part in parts], stack)
        else:
            yield _Safetensors([file], stack)
