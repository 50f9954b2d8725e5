"""Losses that get probabilities where they expect logits, or the reverse."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import torch
from pydantic import Field

from debugkit import Finding, Target, Unavailable, check, fail, note, warn
from debugkit.loss.losses import Facts, LossCall
from debugkit.probes.training_step import TrainingStep
from debugkit.testing import blobs, mlp
from debugkit.tracing.graph import Producer

_FIT = {
    "cross_entropy": "pass the raw logits; `cross_entropy` applies log-softmax itself. Use softmax only to predict",
    "binary_cross_entropy_with_logits": "pass the raw logits; the loss applies sigmoid itself. Use sigmoid only to "
    "predict",
    "multilabel_soft_margin_loss": "pass the raw logits; the loss applies sigmoid itself",
    "nll_loss": "pass `log_softmax(logits, dim=1)`, or use `cross_entropy` on the raw logits",
    "kl_div": "pass `log_softmax(logits, dim=-1)` as the input",
    "ctc_loss": "pass `log_softmax(logits, dim=-1)`",
    "binary_cross_entropy": "pass `sigmoid(logits)`, or use `binary_cross_entropy_with_logits` on the raw logits",
}


@check
def logits_vs_probs(
    step: TrainingStep,
    *,
    tolerance: Annotated[
        float, Field(gt=0, lt=0.1, description="how far a row of probabilities may be from summing to 1")
    ] = 1e-3,
) -> Iterator[Finding]:
    """A loss gets probabilities where it expects logits, or the reverse.

    Every loss call of one traced step is judged by the operation that computed its input (read from the
    autograd graph) first, and by the values of the input second.

    ## Why is this bad?
    Softmax before `cross_entropy` normalises twice. The loss still falls, but it can't go below
    ln(1 + (C - 1) / e), which is 0.31 for 2 classes and 3.62 for 100, and gradients shrink as the model gets
    more certain. Logits given to a loss that expects log-probabilities make it unbounded below. A softmax
    over the batch or over a single unit makes the output independent of what the model knows.

    ## What to do
    Let the model return raw logits and use the loss that takes them (`cross_entropy`,
    `binary_cross_entropy_with_logits`); apply softmax or sigmoid only where predictions are read.

    ## Known limits
    A loss written out by hand is seen only where it applies softmax or log-softmax to probabilities. Inside
    reentrant activation checkpointing the graph is hidden and the values alone decide.

    ## References
    - https://docs.pytorch.org/docs/stable/generated/torch.nn.CrossEntropyLoss.html
    - https://karpathy.github.io/2019/04/25/recipe/
    """
    calls = [call for call in step.loss_calls if call.connected or not step.has_graph]
    if not calls and not step.double_softmax:
        raise Unavailable("the step calls no loss function that torch provides, so there is nothing to judge")
    judged = set()
    for call in calls:
        if (key := (call.name, call.location)) in judged:
            continue
        findings = list(_judge(call, tolerance))
        if findings:
            judged.add(key)
        yield from findings
    for pair in step.double_softmax:
        if not judged:
            judged.add((pair.op, pair.location))
            yield fail(
                f"`{pair.op}` is applied to the output of a softmax{_at(pair.first)}: the probabilities are "
                "normalised twice and the gradient fades as the model gets certain",
                where=pair.module,
                location=pair.location,
                hint="apply softmax or log-softmax once, to the raw logits",
            )
    if not judged:
        for call in calls:
            behind = " and ".join(sorted({_shown(producer) for producer in call.producers})) or "no graph"
            yield note(
                f"`{call.name}` gets {call.expects} in [{call.input.minimum:.3g}, {call.input.maximum:.3g}] ({behind})",
                location=call.location,
            )


def _judge(call: LossCall, tolerance: float) -> Iterator[Finding]:
    if call.expects == "logits":
        yield from _judge_logits(call, tolerance)
    elif call.expects == "binary logits":
        yield from _judge_binary_logits(call)
    elif call.expects == "log-probabilities":
        yield from _judge_log_probabilities(call, tolerance)
    elif call.expects == "probabilities" and (finding := _softmax_for_several(call) or _cut_to_range(call)):
        yield finding
    elif softmax := _softmax_over_batch_or_one(call):
        yield softmax


def _judge_logits(call: LossCall, tolerance: float) -> Iterator[Finding]:
    facts, classes = call.input, call.input.shape[call.class_dim]
    if classes == 1:
        yield _finding(call, "a single class: its loss is 0 whatever the model gives", hint=_ONE_UNIT)
        return
    if softmax := _softmax_over_batch_or_one(call):
        yield softmax
        return
    if producer := _made_by(call, "softmax"):
        yield _finding(call, f"softmax outputs{_at(producer)}{_sums(call)}", row_sum=facts.row_sums[1])
    elif producer := _made_by(call, "sigmoid", "hardsigmoid"):
        yield _finding(call, f"{producer.op} outputs{_at(producer)}, squashed into [0, 1]")
    elif producer := _made_by(call, "relu"):
        yield _finding(
            call,
            f"ReLU outputs{_at(producer)}: no logit can go below 0 and the clipped ones get no gradient",
            hint="remove the ReLU after the last layer",
        )
    elif producer := _made_by(call, "tanh"):
        yield _finding(
            call,
            f"tanh outputs{_at(producer)}: logits within [-1, 1] can't express certainty",
            level="warn",
            hint="remove the tanh after the last layer",
        )
    elif (producer := _made_by(call, "log_softmax")) and call.class_dim in (producer.dim, call.class_dim):
        yield _finding(
            call,
            f"log-softmax outputs{_at(producer)}: harmless, since log-softmax twice is log-softmax once",
            level="warn",
            hint="pass the raw logits, or use `nll_loss`",
        )
    elif (
        facts.rows >= 4 and facts.minimum >= 0 and _near(facts.row_sums, 1, tolerance) and not _one_hot(facts)
    ):
        yield _finding(call, f"values that are probabilities{_sums(call)}", row_sum=facts.row_sums[1])


def _judge_binary_logits(call: LossCall) -> Iterator[Finding]:
    facts = call.input
    if softmax := _softmax_over_batch_or_one(call):
        yield softmax
    elif producer := _made_by(call, "sigmoid", "hardsigmoid", "softmax"):
        yield _finding(
            call,
            f"{producer.op} outputs{_at(producer)}, in [{facts.minimum:.3g}, {facts.maximum:.3g}]: the prediction "
            "can't leave [0.5, 0.73]",
        )
    elif producer := _made_by(call, "logsigmoid", "log_softmax"):
        yield _finding(
            call,
            f"{producer.op} outputs{_at(producer)}, never above 0: no probability can go above 0.5",
        )
    elif producer := _made_by(call, "relu"):
        yield _finding(
            call,
            f"ReLU outputs{_at(producer)}: no probability can go below 0.5",
            hint="remove the ReLU after the last layer",
        )
    elif not call.producers and facts.minimum > 0 and facts.maximum < 1 and facts.rows >= 8:
        yield _finding(
            call,
            f"values in ({facts.minimum:.3g}, {facts.maximum:.3g}) that look like probabilities",
            level="warn",
        )


def _judge_log_probabilities(call: LossCall, tolerance: float) -> Iterator[Finding]:
    facts = call.input
    if call.name == "kl_div" and (problem := _kl_target(call)):
        yield _finding(call, problem, hint="match `log_target` with what the target holds")
    if producer := _made_by(call, "softmax", "sigmoid"):
        yield _finding(call, f"{producer.op} outputs{_at(producer)}, not their logarithm")
    elif facts.maximum > tolerance:
        proven = facts.minimum >= 0 and _near(facts.row_sums, 1, tolerance)
        what = "probabilities" if proven else "raw scores"
        yield _finding(
            call,
            f"{what} (up to {facts.maximum:.3g}; a log-probability is never above 0), so the loss has no lower bound",
            largest=facts.maximum,
        )
    elif (producer := _made_by(call, "log_softmax")) and producer.length not in (
        None,
        facts.shape[call.class_dim],
    ):
        yield _finding(
            call,
            f"log-probabilities normalised over dim {producer.dim} with {producer.length} entries{_at(producer)}; "
            f"there are {facts.shape[call.class_dim]} classes",
            hint="apply `log_softmax` over the dimension of the classes",
        )
    elif facts.log_normalised_dims and call.class_dim not in facts.log_normalised_dims:
        dim = facts.log_normalised_dims[0]
        yield _finding(
            call,
            f"log-probabilities normalised over dim {dim} of {list(facts.shape)}; the classes are in dim "
            f"{call.class_dim}",
            hint=f"use `log_softmax(logits, dim={call.class_dim})`",
        )
    elif call.name == "nll_loss" and not _near(facts.row_logsumexps, 0, max(tolerance, 0.05)):
        yield _finding(
            call,
            "values that are not normalised: the probabilities of a row sum to "
            f"{torch.tensor(facts.row_logsumexps[1]).exp():.3g}",
            level="warn",
        )


def _softmax_over_batch_or_one(call: LossCall) -> Finding | None:
    for producer in call.producers:
        if producer.op not in ("softmax", "log_softmax") or producer.dim is None:
            continue
        if producer.length == 1:
            return _finding(
                call, f"a {producer.op} over a single unit{_at(producer)}: its output is constant", _ONE_UNIT
            )
        same = producer.length == call.input.shape[0] and len(call.input.shape) == 2
        if producer.dim == 0 and same and call.input.normalised_dims == (0,):
            return _finding(
                call,
                f"a softmax over dim 0, the batch{_at(producer)}: each sample's output depends on the others",
                "use `softmax(logits, dim=-1)`",
            )
    return None


def _softmax_for_several(call: LossCall) -> Finding | None:
    """Softmax outputs against targets of which several may be on in a row."""
    producer, target = _made_by(call, "softmax"), call.target
    if producer is None or target is None or target.shape != call.input.shape or len(target.shape) < 2:
        return None
    if not _near(call.input.row_sums, 1, 1e-2) or _near(target.row_sums, 1, 1e-2):
        return None
    low, high = target.row_sums
    return _finding(
        call,
        f"softmax outputs{_at(producer)} whose rows sum to 1, while the rows of the targets sum to {low:g} to {high:g}",
        "use `sigmoid` for labels that can be on together, or `binary_cross_entropy_with_logits` on the raw logits",
    )


def _cut_to_range(call: LossCall) -> Finding | None:
    """Outputs of a layer that were clamped into the range of probabilities."""
    producer, facts = _made_by(call, "linear", "convolution"), call.input
    if producer is None or not (facts.minimum >= 0 and facts.maximum <= 1) or facts.rows < _FEW:
        return None
    if facts.at_ends < max(_CUT, 4 / facts.rows):
        return None
    return _finding(
        call,
        f"raw outputs{_at(producer)} that were clamped into that range: {facts.at_ends:.0%} of the values are at an end "
        f"of [{facts.minimum:.3g}, {facts.maximum:.3g}] and get no gradient",
        level="warn",
        at_ends=facts.at_ends,
    )


_FEW = 8
_CUT = 0.2
_ONE_UNIT = "use two units with `cross_entropy`, or one unit with `binary_cross_entropy_with_logits`"


def _made_by(call: LossCall, *ops: str) -> Producer | None:
    """The producer, when all that the input was assembled from came out of one of the operations."""
    if call.producers and all(producer.op in ops for producer in call.producers):
        return call.producers[0]
    return None


def _finding(
    call: LossCall, what: str, hint: str | None = None, level: str = "fail", **measured: float
) -> Finding:
    make = fail if level == "fail" else warn
    return make(
        f"`{call.name}` expects {call.expects} and was given {what}",
        where=call.module or next((producer.module for producer in call.producers if producer.module), None),
        location=call.location,
        hint=hint or _FIT.get(call.name),
        **measured,
    )


def _kl_target(call: LossCall) -> str | None:
    if call.target is None or not call.target.dtype.startswith(("float", "bfloat")):
        return None
    if not call.log_target and call.target.minimum < -1e-6:
        return f"a target with negative values (down to {call.target.minimum:.3g}) where probabilities belong"
    if call.log_target and call.target.maximum > 1e-6:
        return f"a target with values up to {call.target.maximum:.3g} where log-probabilities belong"
    return None


def _sums(call: LossCall) -> str:
    return (
        f" (every row sums to 1, {call.input.rows} rows seen)" if _near(call.input.row_sums, 1, 1e-2) else ""
    )


def _one_hot(facts: Facts) -> bool:
    return facts.dtype.startswith(("int", "bool"))


def _near(pair: tuple[float, float], value: float, tolerance: float) -> bool:
    return all(abs(one - value) <= tolerance for one in pair)


def _at(producer: Producer) -> str:
    places = [f"`{producer.module}`"] if producer.module else []
    places += [producer.location] if producer.location else []
    return f" (from {', '.join(places)})" if places else ""


def _shown(producer: Producer) -> str:
    return f"from `{producer.op}`"


def good() -> Target:
    return Target(mlp(), blobs(), torch.nn.CrossEntropyLoss())


def good_log_softmax_with_nll() -> Target:
    return Target(torch.nn.Sequential(mlp(), torch.nn.LogSoftmax(dim=-1)), blobs(), torch.nn.NLLLoss())


def bad_softmax_before_cross_entropy() -> Target:
    return Target(torch.nn.Sequential(mlp(), torch.nn.Softmax(dim=-1)), blobs(), torch.nn.CrossEntropyLoss())


def bad_sigmoid_before_bce_with_logits() -> Target:
    model = torch.nn.Sequential(mlp(classes=1), torch.nn.Flatten(0), torch.nn.Sigmoid())
    return Target(
        model, blobs(), lambda p, y: torch.nn.functional.binary_cross_entropy_with_logits(p, y.float())
    )


def bad_logits_into_nll() -> Target:
    return Target(mlp(), blobs(), torch.nn.NLLLoss())
