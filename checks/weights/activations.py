"""Units that never fire, activations that are saturated, and layers with nothing non-linear between them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated

import torch
from pydantic import Field

from debugkit import Finding, Target, Unavailable, check, fail, note, warn
from debugkit.probes.initial_scales import InitialScales
from debugkit.probes.reinitialised import FEWEST_UNITS, Reinitialised, is_in_doubt
from debugkit.probes.training_step import TrainingStep
from debugkit.testing import blobs, mlp
from debugkit.tracing.layers import Activation, Layer, Layers
from debugkit.weights.freshness import is_untouched

_CLEAR_MARGIN = 2.0
_FEWEST_VALUES = 64
_LARGE_INPUT = 10.0
_CLOSED = 5.0
_MOST_SHOWN = 3


@check
def activations(
    target: Target,
    step: TrainingStep,
    scales: InitialScales | None,
    fresh: Reinitialised | None,
    *,
    max_saturated: Annotated[
        float, Field(gt=0, le=1, description="share of the values of a bounded function where it is flat")
    ] = 0.5,
    max_growth: Annotated[
        float, Field(gt=1, description="what a layer gets, over what the first layer gets, in a fresh model")
    ] = 1e4,
) -> Iterator[Finding]:
    """A layer's units are dead or saturated, its values grow without bound, or the layers collapse into one.

    What goes into each layer and each activation is measured while the traced step runs.

    ## Why is this bad?
    A ReLU whose input is never positive gives 0 and passes no gradient: what lies before it is never trained. A
    saturated `tanh` or `sigmoid` passes almost none. Layers with nothing non-linear between them are one layer with
    more parameters: the network can't learn what a linear model can't.

    ## What to do
    Look at the bias and the learning rate before dead units, at the scale of what a saturated function gets, and put
    an activation between the layers.

    ## Known limits
    A share of dead units counts only in a fresh model, and only beside the same architecture initialised anew: deep
    networks start with up to half of their units dead, and trained ones often have dead units by right. Saturation
    that comes from inputs is for `input-scale`, that from weights for `initialization`. Linear layers are judged in
    the model as a whole, and where no layer between is narrow: a low-rank product is a design. Non-finite losses are
    for `finite-inputs`.

    ## References
    - https://arxiv.org/abs/1903.06733
    - https://proceedings.mlr.press/v9/glorot10a.html
    - https://cs231n.github.io/neural-networks-1/#actfun
    """
    layers = step.layers
    if not layers.layers:
        raise Unavailable("the step mixes no data by a weight of the model itself")
    if not math.isfinite(step.loss):
        raise Unavailable("the loss is not finite; see `finite-inputs`")
    findings = [
        *_non_finite(layers),
        *_dead(layers),
        *_dying(target, layers, fresh),
        *_saturated(target, layers, scales, max_saturated),
        *_growth(target, layers, scales, max_growth),
        *_collapse(layers),
    ]
    yield from findings
    if not any(finding.level in ("warn", "fail") for finding in findings):
        yield _summary(layers)


def _non_finite(layers: Layers) -> Iterator[Finding]:
    for layer in layers.layers.values():
        if math.isfinite(layer.input_rms) and not math.isfinite(layer.output_rms):
            yield fail(
                f"`{layer.module}` gives NaN or infinity, though its inputs are finite and so is the loss: a part of "
                "the batch is lost on the way",
                where=layer.name,
                location=layer.location,
                hint="look for infinite weights, and for values beyond the range of the precision",
            )
            return


def _dead(layers: Layers) -> Iterator[Finding]:
    dead = [one for one in layers.activations if _is_dead(one)]
    for one in dead[:_MOST_SHOWN]:
        yield fail(
            f"all {one.units} units behind `{one.layer}` are dead: over {one.samples:,} values each, `{one.op}` gets "
            f"nothing above {'0' if one.op.startswith('relu') else 'where it is flat'}, so it gives 0 and passes no "
            "gradient",
            where=one.layer,
            location=one.location,
            hint="look at the bias before it, and at the scale and sign of what it gets",
            units=one.units,
            margin=one.margin,
        )


def _is_dead(one: Activation) -> bool:
    enough = one.units >= FEWEST_UNITS or one.margin > _CLEAR_MARGIN
    return one.dead_share == 1.0 and one.samples > 1 and enough


def _dying(target: Target, layers: Layers, fresh: Reinitialised | None) -> Iterator[Finding]:
    doubtful = [one for one in layers.activations if is_in_doubt(one) and not _is_dead(one)]
    if not doubtful or fresh is None:
        return
    is_fresh = is_untouched(target.model)
    for one in doubtful:
        usual = fresh.dead.get((one.layer, one.op))
        worse = usual is not None and 1 - one.dead_share < (1 - usual) / 2
        if not worse or not is_fresh:
            why = "as at a default initialisation" if not worse else "in a model that is not fresh"
            yield note(f"{one.dead_share:.0%} of the units behind `{one.layer}` are dead, {why}")
            continue
        yield warn(
            f"{one.dead_share:.0%} of the {one.units} units behind `{one.layer}` are dead ({one.samples:,} values "
            f"each), against {usual:.0%} at a default initialisation",
            where=one.layer,
            location=one.location,
            hint="look at the bias before them, and at how their weights are initialised",
            dead=one.dead_share,
            usual=usual,
        )


def _saturated(
    target: Target, layers: Layers, scales: InitialScales | None, limit: float
) -> Iterator[Finding]:
    over = [
        one
        for one in layers.activations
        if one.saturated_share > limit
        and one.samples * one.units >= _FEWEST_VALUES
        and one.layer in layers.hidden
    ]
    if not over or not is_untouched(target.model):
        return
    parameters = dict(target.model.named_parameters())
    for one in over:
        excuse = _excuse(layers.layers.get(one.layer), scales, parameters)
        told = (
            f"{one.saturated_share:.0%} of what `{one.op}` behind `{one.layer}` gets is where it is flat (size "
            f"{one.input_rms:.3g})"
        )
        if excuse:
            yield note(f"{told}: {excuse}", where=one.layer)
            continue
        yield warn(
            f"{told}: hardly a gradient passes",
            where=one.layer,
            location=one.location,
            hint="bring its input to a size of about 1: leave out the factor before it, or normalise",
            saturated=one.saturated_share,
        )


def _excuse(
    layer: Layer | None, scales: InitialScales | None, parameters: dict[str, torch.nn.Parameter]
) -> str:
    if layer is None:
        return "its layer can't be told"
    if scales is not None and any(one.kind == "large" for one in scales.off):
        return "weights start too large; see `initialization`"
    if layer.input_rms > _LARGE_INPUT:
        return f"its layer gets values of size {layer.input_rms:.3g}; see `input-scale`"
    bias = parameters.get(layer.bias or "")
    if bias is not None and float(bias.detach().abs().mean()) > _CLOSED:
        return "its bias holds the gate shut or open"
    return ""


def _growth(target: Target, layers: Layers, scales: InitialScales | None, limit: float) -> Iterator[Finding]:
    first = next(iter(layers.layers.values()))
    top = max(layers.layers.values(), key=lambda one: one.input_rms)
    if not 0 < first.input_rms * limit < top.input_rms < math.inf:
        return
    if (scales is not None and scales.off) or not is_untouched(target.model):
        return
    yield warn(
        f"values grow {top.input_rms / first.input_rms:.2g} times on the way from `{first.name}` to `{top.name}`, "
        f"which gets a size of {top.input_rms:.2g}",
        where=top.name,
        location=top.location,
        hint="normalise between the layers, or scale what each adds to the residual stream",
        growth=top.input_rms / first.input_rms,
    )


def _collapse(layers: Layers) -> Iterator[Finding]:
    found = layers.collapse
    if found is None:
        return
    names = ", ".join(f"`{name}`" for name in found.layers[:_MOST_SHOWN])
    told = f"nothing non-linear stands between {len(found.layers)} layers ({names}"
    told += ", …)" if len(found.layers) > _MOST_SHOWN else ")"
    if found.narrow:
        yield note(f"{told}: together they are one linear layer of low rank")
        return
    yield warn(
        f"{told}: together they are one linear layer, and can learn no more than it",
        where=found.layers[0],
        location=layers.layers[found.layers[0]].location,
        hint="put an activation such as `nn.ReLU()` between the layers, or keep one layer",
        layers=len(found.layers),
    )


def _summary(layers: Layers) -> Finding:
    flat = [one.dead_share for one in layers.activations]
    saturated = [one.saturated_share for one in layers.activations if one.op in ("tanh", "sigmoid")]
    text = f"{len(layers.layers)} layers and {len(layers.activations)} activations behind them"
    text += f": at most {max(flat):.0%} dead units" if flat else ""
    text += f", at most {max(saturated):.0%} saturated" if saturated else ""
    return note(text, layers=len(layers.layers), activations=len(layers.activations))


def _deep(activation: type[torch.nn.Module] = torch.nn.ReLU) -> torch.nn.Sequential:
    return torch.nn.Sequential(
        torch.nn.Linear(8, 32), activation(), torch.nn.Linear(32, 32), activation(), torch.nn.Linear(32, 2)
    )


def good() -> Target:
    return Target(mlp(), blobs(), torch.nn.CrossEntropyLoss())


def good_bottleneck_without_activation() -> Target:
    model = torch.nn.Sequential(torch.nn.Linear(8, 3), torch.nn.Linear(3, 8))
    return Target(model, blobs(), training_step=lambda net, batch: (net(batch[0]) - batch[0]).square().mean())


def bad_bias_of_minus_100() -> Target:
    model = _deep()
    torch.nn.init.constant_(model[2].bias, -100)  # type: ignore[arg-type]
    return Target(model, blobs(), torch.nn.CrossEntropyLoss())


def bad_no_activation() -> Target:
    return Target(_deep(torch.nn.Identity), blobs(), torch.nn.CrossEntropyLoss())
