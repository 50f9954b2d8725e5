"""Weights that are meant to be one tensor and are not, or are one and are not meant to be."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from debugkit import Finding, Target, Unavailable, check, fail, note, warn
from debugkit.probes.training_step import TrainingStep
from debugkit.probes.weight_ties import Copied, Repeated, Untied, WeightTies
from debugkit.testing import blobs
from debugkit.tracing.graph import ancestors


@check
def tied_weights(ties: WeightTies, step: TrainingStep | None) -> Iterator[Finding]:
    """Weights that are meant to be tied are not, or layers that are meant to differ are one.

    Compares the parameters with what the model's own `tie_weights()` would make of them, looks for copies and for
    parameters on the same memory, and for lists that hold one layer again and again.

    ## Why is this bad?
    Input and output embedding that should be one tensor drift apart when they are two: the model has more
    parameters than was meant, adapters and resizing reach only one of them, and the next `from_pretrained`
    ties them again and throws one away. In the other direction, `[layer] * 12` is one layer twelve times: the
    model runs at the depth that was asked for with a twelfth of its weights. None of it raises.

    ## What to do
    Tie by assigning the parameter itself (`head.weight = embedding.weight`), after resizing, wrapping and
    loading; call `model.tie_weights()`. If the weights are meant to be separate, set
    `config.tie_word_embeddings = False`. Build every layer of a list anew, or with `copy.deepcopy`.

    ## Known limits
    A hand-written model without `tie_weights` is known to be untied only while both tensors still hold the same
    values. Copies of whole networks (teachers, ensembles, target networks) are not looked at. A list that holds
    one layer several times is a warning where its outputs feed into each other, and a note where they stand side
    by side (shared prediction heads) or that was not seen. What the optimizer holds is the matter of
    `optimizer-coverage`.

    ## References
    - https://arxiv.org/abs/1608.05859
    - https://docs.pytorch.org/docs/stable/generated/torch.nn.Module.html#torch.nn.Module.load_state_dict
    """
    if not ties.could_tie:
        raise Unavailable(
            "nothing in the model could be tied: no embedding beside a projection, no repeated layer"
        )
    yield from (_untied(one) for one in ties.untied)
    told = {name for one in ties.untied for name in (one.name, one.source)}
    yield from (_overlap(*pair) for pair in ties.overlapping if told.isdisjoint(pair))
    yield from (_copy(one) for one in ties.copied if told.isdisjoint((one.table, one.projection)))
    yield from (_repeat(one, step) for one in ties.repeated)
    if ties.against_config:
        one, other = ties.against_config
        yield warn(
            f"`{one}` and `{other}` are one tensor though the config has `tie_word_embeddings=False`: only one of them "
            "is saved, and loading leaves the other fresh",
            where=other,
            hint="set `config.tie_word_embeddings = True`, or give the head a parameter of its own",
        )
    separate = f"{ties.lists - len(ties.repeated)} lists of layers hold separate ones"
    if ties.shared:
        shown = ", ".join(f"`{group[0]}` = `{group[-1]}`" for group in ties.shared[:3])
        more = f" and {len(ties.shared) - 3} more" if len(ties.shared) > 3 else ""
        yield note(
            f"tensors with several names: {len(ties.shared)} ({shown}{more}); {separate}",
            shared=len(ties.shared),
        )
    else:
        yield note(f"no parameter has two names; {separate}", shared=0)


def _untied(one: Untied) -> Finding:
    state = "which hold the same values now and will drift apart" if one.equal else "which already differ"
    if not one.declared:
        return warn(
            f"the config says that `{one.name}` and `{one.source}` are tied, but the model keeps two tensors, {state}",
            where=one.name,
            hint="set `config.tie_word_embeddings = False` if they are meant to be separate, else call "
            "`model.tie_weights()`",
        )
    return fail(
        f"`{one.name}` and `{one.source}` are meant to be one tensor and are two, {state}; the next load ties them again",
        where=one.name,
        hint="call `model.tie_weights()` before the optimizer is made, or set `config.tie_word_embeddings = False`",
        equal=one.equal,
    )


def _overlap(one: str, other: str) -> Finding:
    return fail(
        f"`{one}` and `{other}` are two parameters on the same memory: each gets a gradient and an update of its own, "
        "and moving or copying the model separates them",
        where=other,
        hint="assign the parameter itself, not its `.data`",
    )


def _copy(one: Copied) -> Finding:
    size = "" if one.same_size else f" in its first {one.rows:,} rows"
    told = f"`{one.projection}` holds the same values as `{one.table}`{size}, as a tied head does, but is another tensor"
    if not one.trainable:
        return note(told, where=one.projection)
    return warn(
        f"{told}: the two will drift apart",
        where=one.projection,
        hint=f"assign the parameter: `{one.projection} = {one.table}`"
        + ("" if one.same_size else ", after both were resized"),
        rows=one.rows,
    )


def _repeat(one: Repeated, step: TrainingStep | None) -> Finding:
    what = "one" if one.one_object else "shallow copies of one"
    place = f"`{one.container}`" if one.container else "the model"
    told = f"{place} holds {what} `{one.kind}` in {len(one.names)} places"
    chained = one.sequential or (step is not None and _is_chained(one, step))
    if not chained:
        how = (
            "its outputs do not feed into each other"
            if step is not None
            else "how they are called was not seen"
        )
        return note(f"{told}, which share {one.values:,} weights; {how}", where=one.names[1])
    return warn(
        f"{told}, one after another: the depth of {len(one.names)} has the {one.values:,} weights of a single layer",
        where=one.names[1],
        hint="build each anew (`ModuleList(make() for _ in range(n))`) or use `copy.deepcopy`; a single module called "
        "in a loop says that sharing is meant",
        places=len(one.names),
    )


def _is_chained(one: Repeated, step: TrainingStep) -> bool:
    names = dict.fromkeys(one.names)
    nodes = [node for name in names for node in step.module_outputs.get(name, ())]
    return len(nodes) > 1 and nodes[0] is not nodes[1] and nodes[0] in set(ancestors([nodes[1]]))


class _Speller(nn.Module):
    """Token ids ``[batch, length]`` to scores ``[batch, vocabulary]``."""

    def __init__(self, vocabulary: int = 40, width: int = 16) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.body = nn.Sequential(nn.Linear(width, width), nn.ReLU())
        self.head = nn.Linear(width, vocabulary, bias=False)

    def tie_weights(self) -> None:
        self.head.weight = self.embedding.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.head(self.body(self.embedding(ids)).mean(1))
        return scores


def _words(vocabulary: int = 40) -> DataLoader[tuple[torch.Tensor, ...]]:
    ids = torch.randint(0, vocabulary, (64, 6), generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(ids, ids[:, 0]), batch_size=16, shuffle=True)


def _deep(layers: list[nn.Module]) -> Target:
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Sequential(*layers), nn.Linear(16, 2))
    return Target(model, blobs(), nn.CrossEntropyLoss())


def _block() -> nn.Module:
    return nn.Sequential(nn.Linear(16, 16), nn.ReLU())


def good() -> Target:
    model = _Speller()
    model.tie_weights()
    return Target(model, _words(), nn.CrossEntropyLoss())


def good_copies_of_a_layer() -> Target:
    layer = _block()
    return _deep([copy.deepcopy(layer) for _ in range(4)])


def bad_never_tied() -> Target:
    return Target(_Speller(), _words(), nn.CrossEntropyLoss())


def bad_copied_values() -> Target:
    model = _Speller()
    model.tie_weights = None  # type: ignore[assignment,method-assign]
    model.head.weight = nn.Parameter(model.embedding.weight.detach().clone())
    return Target(model, _words(), nn.CrossEntropyLoss())


def bad_tied_by_data() -> Target:
    model = _Speller()
    model.tie_weights = None  # type: ignore[assignment,method-assign]
    model.head.weight.data = model.embedding.weight.data
    return Target(model, _words(), nn.CrossEntropyLoss())


def bad_one_layer_four_times() -> Target:
    return _deep([_block()] * 4)
