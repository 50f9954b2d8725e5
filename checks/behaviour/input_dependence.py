"""Inputs that change nothing."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from debugkit import Finding, Target, Unavailable, check, fail, note, warn
from debugkit.data.shares import percent
from debugkit.probes.dependence import Dependence
from debugkit.testing import blobs, mlp
from debugkit.tracing.influence import Features
from debugkit.tracing.source import is_library_class


@check
def input_dependence(target: Target, dependence: Dependence) -> Iterator[Finding]:
    """Inputs, features or keys that change nothing.

    Rows run twice in eval mode, with values of other rows in the place of their own. What does not move any output is
    changed again, in all rows and with other values; only what leaves every output exactly as it was is reported.

    ## Why is this bad?
    A model that overwrites its input, reads a constant or drops a part of it in a slice trains without complaint: the
    loss falls to that of the best constant answer, or of what the remaining features can tell.

    ## What to do
    Follow the input through `forward`: a variable that is overwritten, a slice that is too short, a branch whose result
    is never added.

    ## Known limits
    Inputs that are the same in all rows can't tell samples apart and are not judged, nor are labels. Whether a padding
    mask is heeded is judged by `padding-invariance`; here it is told. Single features are looked at where the main input
    is numbers (and the batch has at least three rows); a model of a library that ignores an input does so by design.

    ## References
    - https://karpathy.github.io/2019/04/25/recipe/
    """
    if dependence.own is None:
        raise Unavailable("no change of the inputs could be tried that moves the outputs")
    if dependence.own == 0.0:
        yield _nothing(dependence)
        return
    findings = [*_keys(target, dependence), *_features(dependence.features, dependence.main)]
    yield from findings
    if not any(finding.level == "warn" for finding in findings):
        tried = 1 + len(dependence.effects)
        yield note(
            f"{tried} of {len(dependence.names)} inputs changed; `{dependence.main}` moves the outputs by "
            f"{dependence.own:.2g}",
            change=dependence.own,
        )


def _nothing(dependence: Dependence) -> Finding:
    names = ", ".join(f"`{name}`" for name in dependence.names[:4])
    if dependence.reached and dependence.variety is not None:
        return note(
            "outputs are computed from the inputs and still the same for all of them (see `output-variety`)"
        )
    return fail(
        f"outputs are exactly the same whatever is put in the place of {names}: the model ignores its inputs",
        where=dependence.main,
        hint="look in `forward` for a variable that is overwritten, or a result that is never used",
    )


def _keys(target: Target, dependence: Dependence) -> Iterator[Finding]:
    for name, effect in dependence.effects.items():
        if not effect.constant or (dependence.own or 0.0) <= dependence.tolerance:
            continue
        if effect.mask:
            yield note(
                f"`{name}` changes nothing (see `padding-invariance` for whether that matters)", where=name
            )
        elif is_library_class(type(target.model)):
            yield note(
                f"`{name}` changes nothing: `{type(target.model).__name__}` does not use it", where=name
            )
        else:
            yield warn(
                f"other values of `{name}` leave every output exactly as it is: the model takes this input and does not use "
                "it",
                where=name,
                hint=f"use `{name}` in `forward`, or leave it out of the batch",
            )


def _features(features: Features | None, main: str) -> Iterator[Finding]:
    if features is None or not features.ignored:
        return
    ignored, count = features.ignored, features.count
    shown = ", ".join(map(str, ignored[:5])) + (", …" if len(ignored) > 5 else "")
    yield warn(
        f"{len(ignored)} of {count} features of `{main}` ({percent(len(ignored) / count)}; {shown}) change no output at "
        "all",
        where=main,
        hint="look for a slice or a reshape in `forward` that drops them",
        features=len(ignored),
    )


class _Net(nn.Module):
    def __init__(self, reads: str = "all") -> None:
        super().__init__()
        self.body = mlp()
        self.reads = reads

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.reads == "nothing":
            x = torch.ones_like(x)
        elif self.reads == "half":
            x = torch.cat([x[:, :4], torch.zeros_like(x[:, 4:])], dim=1)
        logits: torch.Tensor = self.body(x)
        return logits


def good() -> Target:
    return Target(_Net(), blobs(), nn.CrossEntropyLoss())


def bad_input_overwritten() -> Target:
    return Target(_Net("nothing"), blobs(), nn.CrossEntropyLoss())


def bad_half_of_the_features() -> Target:
    return Target(_Net("half"), blobs(), nn.CrossEntropyLoss())
