"""Readings of matrices, kept by the content of their tensors."""

from __future__ import annotations

import hashlib
import os
from dataclasses import fields
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from debugkit.weights.matrix import Matrix
from debugkit.weights.readings import Reading

VERSION = 1
_FACTS = [one.name for one in fields(Reading) if one.name != "eigenvalues"]


class EigenvalueCache:
    """A folder of readings, one file for each content: an unchanged tensor is never analysed twice.

    Args:
        folder: made when it is not there.
        precision: in which the eigenvalues are computed.
    """

    def __init__(self, folder: Path, precision: str) -> None:
        self._folder = folder
        self._precision = precision
        self.hits = 0

    def key(self, matrix: Matrix) -> str:
        """A hash of the values, of how they are cut, and of this engine's version."""
        how = (
            matrix.shape,
            matrix.dtype,
            matrix.kind,
            matrix.parts,
            matrix.axis,
            matrix.outputs,
            matrix.groups,
        )
        digest = hashlib.blake2b(repr((VERSION, self._precision, *how)).encode(), digest_size=20)
        digest.update(np.ascontiguousarray(matrix.load()).reshape(-1).view(np.uint8).data)
        return digest.hexdigest()

    def get(self, key: str) -> list[Reading] | None:
        """What was read from this content before; ``None`` where nothing was, or its file can't be read."""
        try:
            with (
                (self._folder / f"{key}.npz").open("rb") as file,
                np.load(file, allow_pickle=False) as held,
            ):
                found = [
                    Reading(
                        held[f"eigenvalues{index}"],
                        **{name: held[name][index].item() for name in _FACTS},
                    )
                    for index in range(len(held["finite"]))
                ]
        except (OSError, KeyError, ValueError, BadZipFile):
            return None
        self.hits += 1
        return found

    def put(self, key: str, readings: list[Reading]) -> None:
        """Keep what was read; a file is there whole or not at all."""
        self._folder.mkdir(parents=True, exist_ok=True)
        facts = {name: np.array([getattr(one, name) for one in readings]) for name in _FACTS}
        values = {f"eigenvalues{index}": one.eigenvalues for index, one in enumerate(readings)}
        partial = self._folder / f"{key}.{os.getpid()}.part"
        with partial.open("wb") as file:
            np.savez(file, allow_pickle=False, **facts, **values)
        partial.replace(self._folder / f"{key}.npz")
