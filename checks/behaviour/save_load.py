"""What a checkpoint does not bring back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from debugkit import Finding, Target, Unavailable, check, fail, note, warn
from debugkit.probes.pretrained_trip import PretrainedTrip
from debugkit.probes.state_dict_trip import StateDictTrip
from debugkit.probes.unsaved_state import UnsavedState
from debugkit.testing import blobs, mlp


@check
def save_load(
    trip: StateDictTrip | None, unsaved: UnsavedState | None, pretrained: PretrainedTrip | None
) -> Iterator[Finding]:
    """A checkpoint does not bring back the model that was trained.

    The trainable parameters are overwritten with noise and loaded from the model's own state dict; a training step
    shows which attributes outside the state dict it changes, and whether outputs depend on them; a small
    transformers model is saved and loaded again.

    ## Why is this bad?
    It shows when the model is used, days after training: the metrics of the loaded model are worse, or it fails
    to load at all. A moving average kept as a plain tensor is back at its start, a `state_dict` of one's own
    leaves a layer out, an adapter checkpoint holds no head.

    ## What to do
    Register state with `register_buffer` (persistent), layers in `nn.ModuleList`, numbers with
    `get_extra_state`. With peft, name new heads in `modules_to_save`. Keep `config` in step with the modules.

    ## Known limits
    Parameters in plain lists are the matter of `missing-gradients`. State outside the model's modules (closures,
    trackers in the training loop) is not seen. A module that was added to a transformers model is a note, since
    code of one's own may build it again. Models over 256 MiB are not loaded, transformers models over 64 MiB not
    rebuilt.

    ## References
    - https://docs.pytorch.org/docs/stable/notes/serialization.html
    - https://docs.pytorch.org/docs/stable/generated/torch.nn.Module.html#torch.nn.Module.register_buffer
    - https://huggingface.co/docs/peft/developer_guides/checkpoint
    """
    if trip is None and unsaved is None and pretrained is None:
        raise Unavailable("nothing that training changes could be saved and loaded here")
    if trip is not None:
        yield from _state_dict(trip)
    if unsaved is not None:
        yield from _attributes(unsaved)
    if pretrained is not None:
        yield from _adapter(pretrained) if pretrained.kind == "peft" else _checkpoint(pretrained)


def _state_dict(trip: StateDictTrip) -> Iterator[Finding]:
    if trip.lost:
        refused = f"; a strict load says: {trip.refusal}" if trip.refusal else ""
        yield fail(
            f"{len(trip.lost)} of {trip.checked} tensors that training changes ({_names(trip.lost)}) are not restored by "
            f"`load_state_dict(state_dict())`{refused}",
            where=trip.lost[0],
            hint="let `state_dict` hold every parameter and running statistic, and `load_state_dict` copy each",
            lost=len(trip.lost),
        )
    elif trip.refusal is not None:
        yield note(
            f"a strict load of the model's own state dict raises ({trip.refusal}); what is trained is in it"
        )
    else:
        yield note(
            f"loading restores all {trip.checked} tensors that training changes ({trip.tensors} tensors saved)"
        )


def _attributes(unsaved: UnsavedState) -> Iterator[Finding]:
    if unsaved.needed:
        yield fail(
            f"training changes {_names(unsaved.needed)}, which the state dict does not hold; without it the outputs in "
            f"eval mode move by {unsaved.gap:.2g} standard deviations",
            where=unsaved.needed[0],
            hint="keep it with `register_buffer`, or give it to `get_extra_state`",
            gap=unsaved.gap,
        )
    elif unsaved.changed:
        how = "outputs do not depend on them" if unsaved.compared else "outputs could not be compared"
        yield note(f"a step changes attributes that are not saved ({_names(unsaved.changed)}); {how}")


def _adapter(pretrained: PretrainedTrip) -> Iterator[Finding]:
    if pretrained.lost:
        yield fail(
            f"{len(pretrained.lost)} trainable parameters ({_names(pretrained.lost)}) are not in what peft saves: they "
            "are trained and lost",
            where=pretrained.lost[0],
            hint="name their module in `modules_to_save`",
            lost=len(pretrained.lost),
        )
    else:
        yield note(f"peft saves everything that is trained ({pretrained.tensors} tensors)")


def _checkpoint(pretrained: PretrainedTrip) -> Iterator[Finding]:
    if pretrained.lossy_config:
        yield note(
            f"the saved config leaves out what gives {_names(pretrained.mismatched)} their shape; pass it to "
            "`from_pretrained` again (such as `num_labels`)",
            where=pretrained.mismatched[0],
        )
    elif pretrained.mismatched:
        yield warn(
            f"`from_pretrained` can't load what `save_pretrained` saves: {_names(pretrained.mismatched)} have another shape "
            "than the class builds from this config",
            where=pretrained.mismatched[0],
            hint="let the config say what was built (`num_labels`, `vocab_size`)",
        )
    elif pretrained.lost and not pretrained.unexpected:
        yield fail(
            f"{len(pretrained.lost)} parameters ({_names(pretrained.lost)}) come back from `from_pretrained` with other "
            "values",
            where=pretrained.lost[0],
            hint="let the config say which weights are tied, and give every parameter a name of its own",
            lost=len(pretrained.lost),
        )
    elif pretrained.unexpected or pretrained.missing:
        names = (*pretrained.unexpected, *pretrained.missing)
        yield note(
            f"{len(names)} saved or expected tensors ({_names(names)}) belong to modules that the class builds otherwise; "
            "build them by hand before loading",
            where=names[0],
        )
    else:
        yield note(f"`from_pretrained` gives back all {pretrained.tensors} parameters")


def _names(names: tuple[str, ...]) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:3])
    return shown + (f" and {len(names) - 3} more" if len(names) > 3 else "")


class _Centred(nn.Module):
    """Subtracts a moving average ``[features]`` of its inputs."""

    def __init__(self, registered: bool) -> None:
        super().__init__()
        self.body = mlp()
        if registered:
            self.register_buffer("average", torch.zeros(8))
        else:
            self.average = torch.zeros(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.average = 0.9 * self.average + 0.1 * x.mean(0).detach()
        logits: torch.Tensor = self.body(x - self.average)
        return logits


class _Partial(nn.Module):
    """Saves its body alone."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(8))
        self.body = mlp()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.body(x * self.scale)
        return logits

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return {
            key: value for key, value in super().state_dict(*args, **kwargs).items() if key.startswith("body")
        }

    def load_state_dict(self, state: Any, strict: bool = True, assign: bool = False) -> Any:
        return super().load_state_dict(state, strict=False, assign=assign)


def good() -> Target:
    return Target(_Centred(registered=True), blobs(), nn.CrossEntropyLoss())


def good_cache() -> Target:
    class Remembers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.hidden = x.mean(0)
            logits: torch.Tensor = self.body(x)
            return logits

    return Target(Remembers(), blobs(), nn.CrossEntropyLoss())


def bad_plain_tensor() -> Target:
    return Target(_Centred(registered=False), blobs(), nn.CrossEntropyLoss())


def bad_state_dict_of_its_own() -> Target:
    return Target(_Partial(), blobs(), nn.CrossEntropyLoss())
