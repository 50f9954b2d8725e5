"""Weights that should come from a checkpoint and are fresh."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from debugkit import Finding, Target, Unavailable, check, fail, note, warn
from debugkit.probes.initial_state import InitialState
from debugkit.probes.layer_spectra import LayerSpectra
from debugkit.probes.named_checkpoint import NamedCheckpoint
from debugkit.testing import blobs
from debugkit.weights.fresh_blocks import FreshBlocks, fresh_blocks
from debugkit.weights.freshness import is_noise
from debugkit.weights.model_matrices import unreadable
from debugkit.weights.table_origin import origin_of

_SHORTEST_SIDE = 8


@check
def pretrained_loaded(
    target: Target, spectra: LayerSpectra, state: InitialState, named: NamedCheckpoint | None
) -> Iterator[Finding]:
    """The model names a checkpoint but its body is fresh, or fresh parts stand among trained ones.

    Where the config names a checkpoint that is on this machine, its weights are compared with the model's;
    otherwise the eigenvalue spectra tell which layers are trained.

    ## Why is this bad?
    `load_state_dict(strict=False)` drops every key whose name does not match, and `from_config` builds the
    architecture without its weights: both run, and training starts from noise at a learning rate meant for
    fine-tuning. A checkpoint of a smaller model leaves the upper blocks random.

    ## What to do
    Look at what loading returned (`missing_keys`, `unexpected_keys`), and strip the prefix that differs
    (`module.`, `model.`, `_orig_mod.`). Build pretrained models with `from_pretrained`.

    ## Known limits
    A model without a named checkpoint is judged by its spectra alone, which takes matrices with a side of 128 and
    a clear majority of trained ones. A new head is a note. A single layer that looks untrained is the matter of
    `alpha-outliers`, a frozen embedding of `frozen-embeddings`. A language model that is trained from scratch with
    the config of a published one should have its `config.name_or_path` emptied.

    ## References
    - https://docs.pytorch.org/docs/stable/generated/torch.nn.Module.html#torch.nn.Module.load_state_dict
    - https://github.com/pytorch/examples/issues/1029
    """
    blocks = fresh_blocks(spectra, state)
    if named is None and not state.determined:
        raise Unavailable(
            "no checkpoint is named, and no layer is large enough to tell whether it is trained"
        )
    if named is not None and (finding := _against_checkpoint(target.model, named)) is not None:
        yield finding
        return
    if named is not None and named.missing:
        yield _missing(named)
    else:
        yield from (_blocks(one) for one in blocks)
    if state.trained and (finding := _fresh_embedding(target.model)) is not None:
        yield finding
    yield _summary(state, named)


def _against_checkpoint(model: nn.Module, named: NamedCheckpoint) -> Finding | None:
    """The body that does not come from its checkpoint; ``None`` where it does or that can't be told."""
    compared = len(named.related) + len(named.unrelated)
    body = model.get_submodule(named.module)
    fresh = [name for name in named.unrelated if is_noise(body.get_parameter(name))]
    if compared and len(fresh) > compared / 2:
        share = f"{len(fresh)} of {compared} weights compared"
        how, names = "a config alone gives random weights: use `from_pretrained`", ""
        if named.file_prefix:
            ours = f"`{named.model_prefix}`" if named.model_prefix else "nothing of the kind"
            names = f" (its names begin with `{named.file_prefix}`, the model's with {ours})"
            how = "rename the checkpoint's keys before `load_state_dict`, and look at what it returns"
        alone = (
            not named.local and _is_language_model(body) and all(p.requires_grad for p in body.parameters())
        )
        verdict = warn if alone else fail
        return verdict(
            f"the model names the checkpoint `{named.checkpoint}`{names} and does not hold its weights: {share} are noise "
            "that has nothing in common with it, so training starts from scratch",
            where=fresh[0],
            hint=how,
            unrelated=len(fresh),
            compared=compared,
        )
    fresh = [name for name in fresh if min(body.get_parameter(name).shape) >= _SHORTEST_SIDE]
    if fresh and len(named.related) > compared / 2:
        return warn(
            f"{len(fresh)} weights ({_names(fresh)}) are fresh though the checkpoint `{named.checkpoint}` holds them",
            where=fresh[0],
            hint="look at what was initialised again after loading, and at the keys that loading left out",
            weights=len(fresh),
        )
    return None


def _is_language_model(body: nn.Module) -> bool:
    try:
        return body.get_output_embeddings() is not None  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        return False


def _missing(named: NamedCheckpoint) -> Finding:
    return warn(
        f"{len(named.missing)} weights ({_names(named.missing)}) are not in the checkpoint `{named.checkpoint}`, which holds "
        "those of other blocks: they start from noise",
        where=named.missing[0],
        hint="build the model with as many blocks as the checkpoint has",
        weights=len(named.missing),
    )


def _blocks(one: FreshBlocks) -> Finding:
    count = len(one.fresh) + len(one.trained)
    told = f"{len(one.fresh)} of {count} blocks of `{one.stack}` ({_numbers(one.fresh)}) look untrained, the others trained"
    where = f"{one.stack}.{one.fresh[0]}"
    if not one.among:
        return note(told, where=where)
    return warn(
        told,
        where=where,
        hint="look whether the checkpoint holds these blocks, under these names; reinitialising the last few on purpose "
        "is fine",
        blocks=len(one.fresh),
    )


def _fresh_embedding(model: nn.Module) -> Finding | None:
    try:
        module: Any = model.get_input_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        return None
    weight = getattr(module, "weight", None)
    if not isinstance(weight, nn.Parameter) or unreadable(weight) is not None or not weight.requires_grad:
        return None
    name = next((n for n, p in model.named_parameters() if p is weight), None)
    if name is None or origin_of(weight.detach()) != "random":
        return None
    return warn(
        f"the input embedding `{name}` {list(weight.shape)} is random while the layers behind it are trained: what they "
        "learned has nothing to read",
        where=name,
        hint="look whether the checkpoint holds it under another name, or in another size",
    )


def _summary(state: InitialState, named: NamedCheckpoint | None) -> Finding:
    told = f"{state.count('trained')} weight matrices are trained, {state.count('initial')} look fresh"
    if named is None:
        return note(told, trained=state.count("trained"), fresh=state.count("initial"))
    compared = len(named.related) + len(named.unrelated)
    rest = f"; not in it: {named.absent}" if named.absent else ""
    shapes = f"; in another shape: {_names(named.reshaped)}" if named.reshaped else ""
    return note(
        f"{len(named.related)} of {compared} weights compared come from `{named.checkpoint}`{rest}{shapes}",
        related=len(named.related),
        compared=compared,
    )


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:3])
    return shown + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _numbers(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:8]))
    return shown + (", …" if len(numbers) > 8 else "")


class _Config:
    """A config as a library keeps it: with the name of what was loaded."""

    def __init__(self, name: str) -> None:
        self._name_or_path = name


def _reader(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))


def _named(loaded: bool) -> Target:
    """A model whose config names a folder with the weights of another one."""
    folder = tempfile.mkdtemp()
    saved, model = _reader(1), _reader(2)
    weakref.finalize(model, shutil.rmtree, folder, True)
    torch.save(saved.state_dict(), Path(folder) / "pytorch_model.bin")
    if loaded:
        model.load_state_dict(saved.state_dict())
    model.config = _Config(folder)  # type: ignore[assignment]
    return Target(model, blobs(), nn.CrossEntropyLoss())


def good() -> Target:
    return _named(loaded=True)


def bad_never_loaded() -> Target:
    return _named(loaded=False)
