"""Layers whose eigenvalue spectrum says that they are dead, untrained or hardly trained."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from debugkit import Finding, Target, Unavailable, absent, check, fail, note, warn
from debugkit.probes.initial_state import InitialState
from debugkit.probes.layer_spectra import LayerSpectra
from debugkit.weights.fresh_blocks import FreshBlocks, fresh_blocks
from debugkit.weights.layer_spectrum import LayerSpectrum

from ._layer_words import fit_of, listed, nothing_judged, numbers_of, part_of, reasons
from ._peers import odd_ones, trained_peers
from ._weak_tails import has_weak_tail, weak_tails

if TYPE_CHECKING or not absent.models:
    import torch

    from debugkit.probes.stuck_layers import StuckLayers
    from debugkit.testing import blobs
else:
    from debugkit.absent import Absent as StuckLayers


@check
def alpha_outliers(
    target: Target | None,
    spectra: LayerSpectra,
    state: InitialState,
    stuck: StuckLayers | None,
    *,
    max_alpha: Annotated[
        float,
        Field(
            gt=2,
            description="a tail is weak above this exponent, whichever of the top eigenvalues are left out",
        ),
    ] = 6.0,
    min_sigmas: Annotated[
        float, Field(ge=0, description="standard errors by which alpha must exceed `max-alpha`")
    ] = 2.0,
) -> Iterator[Finding]:
    """A layer's eigenvalue spectrum is dead, looks untrained in a trained model, or has a weak tail.

    The eigenvalues of WᵀW of each weight matrix are compared with the Marchenko-Pastur law, where those of
    random values lie, and their tail is fitted with a power law of exponent alpha.

    ## Why is this bad?
    A layer of zeros, or of a rank far under its size, passes on little of what it gets. A layer that can't be
    told from noise in a model whose other layers have learned was not loaded, or never trained: nothing
    crashes, and every feature that passes through it is scrambled. MiniLM's `pooler.dense` is one: the model
    was trained with mean pooling, and `pooler_output` means nothing.

    ## What to do
    Look whether the checkpoint holds the layer under another name (`pretrained-loaded` lists what was not
    loaded), whether the layer is reached by the loss, and whether anything reads its output. A layer that is
    new on purpose, such as a head, is a note while it is about to be trained.

    ## Known limits
    Alpha alone is no verdict: noise lands between 2 and 6 as often as trained layers do, so alpha under 2 and
    outliers among peers are notes, and so are weak tails in more than a few layers or fitted badly (a distance D
    over 0.15). Matrices with a side under 128 are recognised as untrained only by their uniform values (torch's
    default initialisation), matrices with a side under 32 not at all. NaN and infinity are the matter of
    `finite-weights`, whole blocks that look untrained of `pretrained-loaded` where there is a model to load. In
    the first hundreds of steps layers leave their initialisation one by one, so nothing is called untrained or
    weak until most layers are far from it. A new layer that is about to be trained is a warning only where most
    layers of the same place in other blocks, one of them later, are trained. Embeddings, adapters, depthwise
    convolutions and quantised weights are left out.

    False alarms: in 337 judged layers of seven published models (a MiniLM, an ALBERT, four BERTs, an
    EfficientNet-Lite), two warnings, both of poolers that these models never use. Of the same layers 32 % have an
    alpha outside 2 to 6.

    ## References
    - https://arxiv.org/abs/2102.06559
    - https://arxiv.org/abs/0706.1062
    - https://doi.org/10.1214/aos/1009210544
    """
    dead = list(_dead(target, spectra, state, stuck))
    judged = spectra.judged
    if not judged and not dead:
        raise Unavailable(nothing_judged(spectra))
    yield from dead
    if judged:
        yield _summary(target, spectra, state)
    blocks = [one for one in fresh_blocks(spectra, state) if one.among]
    if target is None:
        yield from (_untrained_blocks(one) for one in blocks)
    if state.trained:
        weak = []
        for layer in judged:
            if any(one.holds(layer.parameter) for one in blocks):
                continue
            if state.state(layer) == "initial":
                yield _untrained(target, layer, state, spectra)
            elif state.state(layer) == "trained" and has_weak_tail(layer, max_alpha, min_sigmas):
                weak.append(layer)
        yield from weak_tails(weak, judged, max_alpha)
        yield from _low_alphas(judged)
        yield from _outliers(judged)


def _dead(
    target: Target | None, spectra: LayerSpectra, state: InitialState, stuck: StuckLayers | None
) -> Iterator[Finding]:
    for layer in spectra.layers:
        if not layer.finite or layer.unjudged:
            continue
        if layer.zero:
            for_good = stuck is not None and layer.parameter in stuck.parameters
            alone = trained_peers(layer, state, spectra) is not None
            will_train = _training_ahead(target) and layer.trainable and not for_good and not alone
            untold = target is None and not state.determined
            make = note if will_train or ((state.fresh or untold) and not for_good) else fail
            until = ""
            if for_good:
                until = ", and its gradient is zero on every batch, so it stays zero"
            elif make is note:
                until = " until it is trained"
            elif alone:
                until = ", while the layers of the same place in other blocks are trained"
            yield make(
                f"`{layer.parameter}`{part_of(layer)} {list(layer.shape)} is all zero: it passes nothing on"
                f"{until}",
                where=layer.parameter,
                hint=None
                if make is note
                else "initialise it at random; zero only the last layer of a residual branch, without a ReLU behind it"
                if for_good
                else "look whether the checkpoint holds this layer under another name",
            )
        elif layer.collapsed:
            yield fail(
                f"`{layer.parameter}`{part_of(layer)} is dead: only {layer.usable} of {layer.count} eigenvalues are "
                "more than rounding, so most directions of its input are lost",
                where=layer.parameter,
                hint="compare it with an earlier checkpoint, or initialise it again",
                usable=layer.usable,
                eigenvalues=layer.count,
            )


def _summary(target: Target | None, spectra: LayerSpectra, state: InitialState) -> Finding:
    judged = spectra.judged
    alphas = [layer.power_law.alpha for layer in judged if layer.power_law]
    text = f"{len(judged)} weight matrices judged"
    if spectra.analysed < spectra.matrices:
        lever = "`--budget`" if target is None else "`layer-spectra.seconds`"
        text += (
            f" ({spectra.analysed} of {spectra.matrices} parameters analysed in the time given; raise "
            f"{lever} for more)"
        )
    if alphas:
        text += f": alpha {min(alphas):.2f} to {max(alphas):.2f}, median {statistics.median(alphas):.2f}"
    initial = state.count("initial")
    if state.fresh:
        text += f"; fresh: {initial} of {len(judged)} layers look like their initialisation"
    elif state.determined:
        text += f"; {initial} of {state.determined} look like their initialisation"
    unjudged = len(spectra.skipped) + sum(not layer.judged and not layer.zero for layer in spectra.layers)
    if unjudged:
        text += f"; not judged: {reasons(spectra)}"
    return note(
        text,
        judged=len(judged),
        median_alpha=statistics.median(alphas) if alphas else None,
        initial_share=state.initial_share if state.determined else None,
    )


def _untrained(
    target: Target | None, layer: LayerSpectrum, state: InitialState, spectra: LayerSpectra
) -> Finding:
    peers = trained_peers(layer, state, spectra)
    odd = peers is not None
    looks = "orthogonal" if layer.orthogonal else "noise"
    if _training_ahead(target) and layer.trainable and not odd:
        return note(
            f"`{layer.parameter}`{part_of(layer)} still looks like its initialisation ({looks}); training starts from "
            "scratch there",
            where=layer.parameter,
            **numbers_of(layer),
        )
    beside = (
        f"{peers} layers of the same place in other blocks are trained"
        if odd
        else f"{state.count('trained')} of {state.determined} layers of the model are trained"
    )
    numbers = (
        f"KS x M {layer.noise.ks:.1f}, edge {layer.noise.edge:.1f}; {fit_of(layer)}"
        if layer.noise and not layer.orthogonal
        else "all eigenvalues are the same"
    )
    return warn(
        f"`{layer.parameter}`{part_of(layer)} looks untrained: its spectrum is that of "
        f"{'an orthogonal matrix' if layer.orthogonal else 'random values'} ({numbers}), while {beside}",
        where=layer.parameter,
        hint="look whether it was loaded and is reached by the loss; do not read its output before it is trained",
        **numbers_of(layer),
    )


def _untrained_blocks(blocks: FreshBlocks) -> Finding:
    fresh, trained = (", ".join(map(str, numbers)) for numbers in (blocks.fresh, blocks.trained))
    return warn(
        f"block{'s' if len(blocks.fresh) > 1 else ''} {fresh} of `{blocks.stack}` look untrained: their spectra are "
        f"those of an initialisation, while blocks {trained} are trained",
        where=f"{blocks.stack}.{blocks.fresh[0]}",
        hint="look whether the checkpoint they come from has these blocks, and under which names",
        blocks=len(blocks.fresh),
    )


def _low_alphas(judged: Iterable[LayerSpectrum]) -> Iterator[Finding]:
    low = [layer for layer in judged if layer.power_law and layer.power_law.alpha < 2]
    if low:
        yield note(
            f"alpha is under 2 in {listed(low)}. A few strong directions carry them, as is common "
            "in trained models",
            layers=len(low),
        )


def _outliers(judged: Iterable[LayerSpectrum]) -> Iterator[Finding]:
    found = odd_ones(judged)
    if found:
        yield note(
            f"alpha is far from that of the same layer in other blocks in {listed(found)}",
            layers=len(found),
        )


def _training_ahead(target: Target | None) -> bool:
    return target is not None and (target.train_loader is not None or target.optimizer is not None)


def _trained(blocks: int = 5, width: int = 128) -> torch.nn.Sequential:
    """A model that has learned: each layer carries a few strong directions beside the noise it started from."""
    model = torch.nn.Sequential(torch.nn.Linear(8, width), torch.nn.ReLU())
    for _ in range(blocks):
        layer = torch.nn.Linear(width, width)
        with torch.no_grad():
            left, right = (torch.linalg.qr(torch.randn(width, width // 2)).Q for _ in range(2))
            layer.weight += (left * 4 * torch.arange(1, width // 2 + 1) ** -0.7) @ right.T
        model.extend([layer, torch.nn.ReLU()])
    return model.append(torch.nn.Linear(width, 2))


def good_fresh() -> Target:
    layers = [part for _ in range(3) for part in (torch.nn.Linear(128, 128), torch.nn.ReLU())]
    model = torch.nn.Sequential(torch.nn.Linear(8, 128), torch.nn.ReLU(), *layers, torch.nn.Linear(128, 2))
    return Target(model, blobs(), torch.nn.CrossEntropyLoss())


def good_new_head() -> Target:
    body = _trained()
    body[-1] = torch.nn.Linear(128, 128)
    model = torch.nn.Sequential(*body, torch.nn.ReLU(), torch.nn.Linear(128, 2))
    return Target(model, blobs(), torch.nn.CrossEntropyLoss())


def bad_layer_not_loaded() -> Target:
    model = _trained()
    model[6].reset_parameters()  # type: ignore[operator]
    return Target(model)


def bad_layer_of_zeros() -> Target:
    model = _trained()
    torch.nn.init.zeros_(model[6].weight)  # type: ignore[arg-type]
    return Target(model)


def bad_rank_collapse() -> Target:
    model = _trained()
    with torch.no_grad():
        model[6].weight.copy_(torch.randn(128, 4) @ torch.randn(4, 128))  # type: ignore[operator]
    return Target(model)
