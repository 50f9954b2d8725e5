"""Layers whose eigenvalue spectrum says that they are dead, untrained or hardly trained."""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any

import torch
from pydantic import Field

from debugkit import Finding, Target, Unavailable, check, fail, note, warn
from debugkit.probes.initial_state import CLEAR_MAJORITY, InitialState
from debugkit.probes.layer_spectra import LayerSpectra
from debugkit.probes.stuck_layers import StuckLayers
from debugkit.testing import blobs
from debugkit.weights.fresh_blocks import fresh_blocks
from debugkit.weights.layer_spectrum import LayerSpectrum

_FEWEST_PEERS = 3
_OUTLIER_PEERS = 6
_OUTLIER_SCORE = 3.5
_WEAK_TAIL_EIGENVALUES = 128
_FEW_WEAK = 2
_FEW_WEAK_SHARE = 0.05


@check
def alpha_outliers(
    target: Target,
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
    outliers among peers are notes, and so are weak tails in more than a few layers. Matrices with a side under 128 are recognised as untrained only by their
    uniform values (torch's default initialisation), matrices with a side under 32 not at all. NaN and infinity
    are the matter of `finite-weights`, whole blocks that look untrained of `pretrained-loaded`. In the first
    hundreds of steps layers leave their initialisation one by one, so nothing is called untrained or weak
    until most layers are far from it. A new layer
    that is about to be trained is a warning only where most layers of the same place in other blocks, one of
    them later, are trained. Embeddings, adapters, depthwise convolutions and quantised weights are left out.

    ## References
    - https://arxiv.org/abs/2102.06559
    - https://arxiv.org/abs/0706.1062
    - https://doi.org/10.1214/aos/1009210544
    """
    dead = list(_dead(target, spectra, state, stuck))
    judged = spectra.judged
    if not judged and not dead:
        raise Unavailable(_nothing(spectra))
    yield from dead
    if judged:
        yield _summary(spectra, state)
    if state.trained:
        weak = []
        blocks = [one for one in fresh_blocks(spectra, state) if one.among]
        for layer in judged:
            if any(one.holds(layer.parameter) for one in blocks):
                continue
            if state.state(layer) == "initial":
                yield _untrained(target, layer, state, spectra)
            elif state.state(layer) == "trained" and _weak_tail(layer, max_alpha, min_sigmas):
                weak.append(layer)
        yield from _weak_tails(weak, judged, max_alpha)
        yield from _low_alphas(judged)
        yield from _outliers(judged)


def _dead(
    target: Target, spectra: LayerSpectra, state: InitialState, stuck: StuckLayers | None
) -> Iterator[Finding]:
    for layer in spectra.layers:
        if not layer.finite:
            continue
        if layer.zero:
            for_good = stuck is not None and layer.parameter in stuck.parameters
            alone = _trained_peers(layer, state, spectra) is not None
            will_train = _training_ahead(target) and layer.trainable and not for_good and not alone
            make = note if will_train or (state.fresh and not for_good) else fail
            until = ""
            if for_good:
                until = ", and its gradient is zero on every batch, so it stays zero"
            elif make is note:
                until = " until it is trained"
            elif alone:
                until = ", while the layers of the same place in other blocks are trained"
            yield make(
                f"`{layer.parameter}`{_part(layer)} {list(layer.shape)} is all zero: it passes nothing on"
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
                f"`{layer.parameter}`{_part(layer)} is dead: only {layer.usable} of {layer.count} eigenvalues are "
                "more than rounding, so most directions of its input are lost",
                where=layer.parameter,
                hint="compare it with an earlier checkpoint, or initialise it again",
                usable=layer.usable,
                eigenvalues=layer.count,
            )


def _summary(spectra: LayerSpectra, state: InitialState) -> Finding:
    judged = spectra.judged
    alphas = [layer.power_law.alpha for layer in judged if layer.power_law]
    text = f"{len(judged)} weight matrices judged"
    if spectra.analysed < spectra.matrices:
        text += (
            f" ({spectra.analysed} of {spectra.matrices} parameters analysed in the time given; raise "
            "`layer-spectra.seconds` for more)"
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
        text += f"; not judged: {_reasons(spectra)}"
    return note(
        text,
        judged=len(judged),
        median_alpha=statistics.median(alphas) if alphas else None,
        initial_share=state.initial_share if state.determined else None,
    )


def _untrained(target: Target, layer: LayerSpectrum, state: InitialState, spectra: LayerSpectra) -> Finding:
    peers = _trained_peers(layer, state, spectra)
    odd = peers is not None
    looks = "orthogonal" if layer.orthogonal else "noise"
    if _training_ahead(target) and layer.trainable and not odd:
        return note(
            f"`{layer.parameter}`{_part(layer)} still looks like its initialisation ({looks}); training starts from "
            "scratch there",
            where=layer.parameter,
            **_measured(layer),
        )
    beside = (
        f"{peers} layers of the same place in other blocks are trained"
        if odd
        else f"{state.count('trained')} of {state.determined} layers of the model are trained"
    )
    numbers = (
        f"KS x M {layer.noise.ks:.1f}, edge {layer.noise.edge:.1f}; {_alpha(layer)}"
        if layer.noise and not layer.orthogonal
        else "all eigenvalues are the same"
    )
    return warn(
        f"`{layer.parameter}`{_part(layer)} looks untrained: its spectrum is that of "
        f"{'an orthogonal matrix' if layer.orthogonal else 'random values'} ({numbers}), while {beside}",
        where=layer.parameter,
        hint="look whether it was loaded and is reached by the loss; do not read its output before it is trained",
        **_measured(layer),
    )


def _trained_peers(layer: LayerSpectrum, state: InitialState, spectra: LayerSpectra) -> str | None:
    """``7 of 8`` when most layers of the same place in other blocks, one of them later, are trained."""
    same_role = [
        other for other in spectra.layers if other.role == layer.role and (other.judged or other is layer)
    ]
    position = next(index for index, other in enumerate(same_role) if other is layer)
    peers = [state.state(other) for other in same_role if other is not layer]
    later = [state.state(other) for other in same_role[position + 1 :]]
    trained = peers.count("trained")
    if trained >= max(_FEWEST_PEERS, CLEAR_MAJORITY * len(peers)) and "trained" in later:
        return f"{trained} of {len(peers)}"
    return None


def _weak_tail(layer: LayerSpectrum, max_alpha: float, min_sigmas: float) -> bool:
    fit = layer.power_law
    return (
        fit is not None
        and layer.alpha_range is not None
        and layer.usable >= _WEAK_TAIL_EIGENVALUES
        and fit.alpha - max_alpha > min_sigmas * fit.sigma
        and layer.alpha_range[0] > max_alpha
    )


def _weak(layer: LayerSpectrum, max_alpha: float) -> Finding:
    return warn(
        f"`{layer.parameter}`{_part(layer)} has a weak tail: {_alpha(layer)} stays above {max_alpha:g}, so it has "
        "learned few strong directions",
        where=layer.parameter,
        hint="compare its gradient and learning rate with its neighbours' over a longer training",
        **_measured(layer),
    )


def _weak_tails(
    weak: list[LayerSpectrum], judged: Sequence[LayerSpectrum], max_alpha: float
) -> Iterator[Finding]:
    """A few weak tails stand out; many are how this model is."""
    if len(weak) <= max(_FEW_WEAK, _FEW_WEAK_SHARE * len(judged)):
        yield from (_weak(layer, max_alpha) for layer in weak)
        return
    yield note(
        f"alpha stays above {max_alpha:g} in {len(weak)} of {len(judged)} layers: {_names(weak)}. With so many, it is "
        "a property of this model, and no layer stands out",
        layers=len(weak),
    )


def _low_alphas(judged: Iterable[LayerSpectrum]) -> Iterator[Finding]:
    low = [layer for layer in judged if layer.power_law and layer.power_law.alpha < 2]
    if low:
        yield note(
            f"alpha is under 2 in {len(low)} layers: {_names(low)}. A few strong directions carry them, as is common "
            "in trained models",
            layers=len(low),
        )


def _outliers(judged: Iterable[LayerSpectrum]) -> Iterator[Finding]:
    roles = defaultdict(list)
    for layer in judged:
        if layer.power_law:
            roles[layer.role].append(layer)
    found = [layer for peers in roles.values() if len(peers) > _OUTLIER_PEERS for layer in _odd_ones(peers)]
    if found:
        yield note(
            f"alpha is far from that of the same layer in other blocks in {len(found)} layers: {_names(found)}",
            layers=len(found),
        )


def _odd_ones(peers: list[LayerSpectrum]) -> Iterator[LayerSpectrum]:
    logs = [math.log(layer.power_law.alpha) for layer in peers if layer.power_law]
    middle = statistics.median(logs)
    spread = statistics.median(abs(value - middle) for value in logs)
    for layer, value in zip(peers, logs, strict=True):
        if 0.6745 * abs(value - middle) > _OUTLIER_SCORE * spread > 0:
            yield layer


def _training_ahead(target: Target) -> bool:
    return target.train_loader is not None or target.optimizer is not None


def _part(layer: LayerSpectrum) -> str:
    return f" ({layer.part})" if layer.part else ""


def _alpha(layer: LayerSpectrum) -> str:
    fit = layer.power_law
    if fit is None or layer.alpha_range is None:
        return "no power law fits"
    low, high = layer.alpha_range
    return (
        f"alpha {fit.alpha:.2f} ± {fit.sigma:.2f} over a tail of {fit.tail} (D {fit.distance:.3f}; {low:.2f} to "
        f"{high:.2f} without up to 5 top eigenvalues)"
    )


def _measured(layer: LayerSpectrum) -> dict[str, Any]:
    numbers: dict[str, Any] = {
        "eigenvalues": layer.count,
        "largest_eigenvalue": layer.largest,
        "stable_rank": layer.stable_rank,
    }
    if layer.noise:
        numbers |= {"noise_ks": layer.noise.ks, "noise_edge": layer.noise.edge}
    if fit := layer.power_law:
        numbers |= {"alpha": fit.alpha, "sigma": fit.sigma, "distance": fit.distance, "tail": fit.tail}
    if layer.alpha_range:
        numbers |= {"alpha_low": layer.alpha_range[0], "alpha_high": layer.alpha_range[1]}
    return numbers


def _names(layers: list[LayerSpectrum], most: int = 5) -> str:
    shown = ", ".join(f"`{layer.parameter}`{_part(layer)}" for layer in layers[:most])
    return shown + (f" and {len(layers) - most} more" if len(layers) > most else "")


def _reasons(spectra: LayerSpectra) -> str:
    reasons = Counter(one.reason.partition(" `")[0] for one in spectra.skipped)
    if broken := sum(not layer.finite for layer in spectra.layers):
        reasons["not finite, see `finite-weights`"] += broken
    if few := sum(layer.measured and not layer.judged for layer in spectra.layers):
        reasons["fewer than 50 eigenvalues"] += few
    return ", ".join(f"{count} ({reason})" for reason, count in reasons.most_common())


def _nothing(spectra: LayerSpectra) -> str:
    if spectra.matrices and not spectra.analysed:
        return "the time was up before the first matrix; raise `layer-spectra.seconds` or the budget"
    if spectra.skipped or spectra.layers:
        return (
            f"no weight matrix is large enough for a verdict (50 eigenvalues); left out: {_reasons(spectra)}"
        )
    return "the model has no weight matrix"


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
