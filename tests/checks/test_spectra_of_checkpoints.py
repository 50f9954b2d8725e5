"""alpha-outliers in the moment that has a checkpoint and no model."""

from __future__ import annotations

import numpy as np
from debugkit.checks.weights.alpha_outliers import alpha_outliers

from debugkit.checkpoints.checkpoint import Checkpoint
from debugkit.evidence import Deadline, buildable, collector
from debugkit.finding import Finding
from debugkit.probes.initial_state import InitialState
from debugkit.probes.layer_spectra import LayerSpectra
from debugkit.sandbox import Sandbox
from debugkit.signature import read_signature
from debugkit.weights.matrix import Array, Matrix


def trained(seed: int, side: int = 128) -> Array:
    draw = np.random.default_rng(seed)
    left, right = (np.linalg.qr(draw.standard_normal((side, side // 2)))[0] for _ in range(2))
    strong = (left * 4 * np.arange(1, side // 2 + 1) ** -0.7) @ right.T
    return (draw.standard_normal((side, side)) * 0.05 + strong).astype(np.float32)


def fresh(seed: int, side: int = 128) -> Array:
    return (np.random.default_rng(seed).standard_normal((side, side)) * 0.02).astype(np.float32)


def matrix(name: str, values: Array, unjudged: str = "") -> Matrix:
    return Matrix(name, "linear", values.shape, "float32", lambda: values, unjudged=unjudged)


def checkpoint(values: dict[str, Array], **unjudged: str) -> Checkpoint:
    matrices = (matrix(name, held, unjudged.get(name, "")) for name, held in values.items())
    return Checkpoint("model.safetensors", tuple(matrices))


def findings(one: Checkpoint) -> list[Finding]:
    spectra = LayerSpectra.collect(None, one, Deadline())
    return list(alpha_outliers(None, spectra, InitialState.collect(spectra), None))


def graver(one: Checkpoint) -> list[tuple[str, str | None]]:
    return [(finding.level, finding.where) for finding in findings(one) if finding.level != "note"]


def blocks(untrained: set[int]) -> dict[str, Array]:
    return {
        f"model.layers.{index}.{name}.weight": (fresh if index in untrained else trained)(10 * index + place)
        for index in range(6)
        for place, name in enumerate(("up", "down"))
    }


def test_spectra_and_check_can_be_built_from_a_checkpoint_alone() -> None:
    assert buildable(collector(LayerSpectra), {Checkpoint, Sandbox, Deadline})
    assert buildable(read_signature(alpha_outliers), {Checkpoint, Sandbox, Deadline})


def test_half_loaded_checkpoint_is_one_finding_for_its_blocks() -> None:
    assert graver(checkpoint(blocks(set()))) == []
    assert graver(checkpoint(blocks({1, 3}))) == [("warn", "model.layers.1")]
    (found,) = [one for one in findings(checkpoint(blocks({4, 5}))) if one.level == "warn"]
    assert "blocks 4, 5 of `model.layers` look untrained" in found.message


def test_one_untrained_layer_and_one_of_zeros_are_found() -> None:
    values = blocks(set())
    values["model.layers.2.up.weight"] = fresh(99)
    values["model.layers.4.down.weight"] = np.zeros((128, 128), np.float32)
    assert sorted(graver(checkpoint(values))) == [
        ("fail", "model.layers.4.down.weight"),
        ("warn", "model.layers.2.up.weight"),
    ]


def test_tables_and_quantised_weights_are_reported_and_not_judged() -> None:
    values = blocks(set()) | {"types": np.zeros((128, 128), np.float32), "packed": fresh(7)}
    one = checkpoint(values, types="embedding table", packed="quantised")
    assert graver(one) == []
    assert "not judged: 1 (embedding table), 1 (quantised)" in findings(one)[0].message
