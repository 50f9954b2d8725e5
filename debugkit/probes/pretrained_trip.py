"""Whether transformers' or peft's ``save_pretrained`` keeps what is trained."""

from __future__ import annotations

import copy
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.nn.parameter import is_lazy

from debugkit.errors import Unavailable, one_line
from debugkit.evidence import Cost
from debugkit.sandbox import Sandbox
from debugkit.state.tensor_state import same_bits
from debugkit.target import Target

LARGEST = 2**26


@dataclass(frozen=True)
class PretrainedTrip:
    """The model after ``save_pretrained`` and ``from_pretrained`` of its own class, or what peft would save.

    Attributes:
        kind: ``transformers``, or ``peft`` where an adapter is saved alone.
        tensors: how many tensors were compared, or are saved.
        lost: trainable parameters that the checkpoint does not give back.
        unexpected: what is saved and not loaded, since the class does not build it.
        missing: what the class builds and the checkpoint does not hold.
        mismatched: parameters that are saved in another shape than the class builds, so that loading raises.
        lossy_config: whether the class builds the saved shapes from the config as it is, so that only its file
            leaves something out.
    """

    cost: ClassVar[Cost] = "static"
    kind: str
    tensors: int
    lost: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    mismatched: tuple[str, ...] = ()
    lossy_config: bool = False

    @staticmethod
    def collect(target: Target, sandbox: Sandbox) -> PretrainedTrip:
        """Save to a temporary folder and load from there; nothing is fetched.

        Raises:
            Unavailable: the model is neither transformers' nor peft's, is too large, or can't be rebuilt.
        """
        model = target.model
        peft, transformers = sys.modules.get("peft"), sys.modules.get("transformers")
        if peft is not None and isinstance(model, peft.PeftModel):
            with sandbox.probe():
                return _adapter(peft, model)
        if transformers is None or not isinstance(model, transformers.PreTrainedModel):
            raise Unavailable("the model has no `save_pretrained` of transformers or peft")
        if (
            getattr(model, "_hf_peft_config_loaded", False)
            or getattr(model, "hf_quantizer", None) is not None
        ):
            raise Unavailable("the model has adapters, or is quantised, and is saved in a way of its own")
        tensors = [*model.parameters(), *model.buffers()]
        if any(is_lazy(t) or t.is_meta or t.layout is not torch.strided for t in tensors):
            raise Unavailable("the model holds tensors without values")
        if (size := sum(t.nbytes for t in tensors)) > LARGEST:
            raise Unavailable(f"the model's {size / 2**20:,.0f} MiB are too much for a second model")
        with sandbox.probe(), _silent(transformers):
            return _round_trip(model)


def _adapter(peft: Any, model: Any) -> PretrainedTrip:
    """peft saves the active adapter and ``modules_to_save``, and no other parameter."""
    try:
        saved = peft.get_peft_model_state_dict(model, save_embedding_layers=True)
    except Exception as error:  # kinds of adapters differ, and a foreign one may refuse in any way
        raise Unavailable(f"peft gives no state dict: {one_line(error)}") from error
    held = {value.data_ptr() for value in saved.values() if isinstance(value, torch.Tensor)}
    named = {n: p for n, p in model.named_parameters() if p.requires_grad and not p.is_meta and p.numel()}
    lost = tuple(name for name, p in named.items() if p.data_ptr() not in held)
    return PretrainedTrip("peft", len(saved), lost=lost)


def _round_trip(model: Any) -> PretrainedTrip:
    kind = type(model)
    with tempfile.TemporaryDirectory() as folder:
        try:
            model.save_pretrained(folder)
        except Exception as error:  # a foreign method may refuse in any way
            raise Unavailable(f"`save_pretrained` raised: {one_line(error)}") from error
        try:
            again, info = kind.from_pretrained(folder, output_loading_info=True, ignore_mismatched_sizes=True)
        except Exception as error:  # a class of the user's own may ask for more than a config
            raise Unavailable(f"`{kind.__name__}.from_pretrained` raised: {one_line(error)}") from error
    before, after = (dict(each.named_parameters(remove_duplicate=False)) for each in (model, again))
    missing, unexpected = (tuple(sorted(info[key])) for key in ("missing_keys", "unexpected_keys"))
    common = [name for name in before if name in after]
    mismatched = tuple(name for name in common if before[name].shape != after[name].shape)
    lost = tuple(
        name
        for name in common
        if name not in mismatched
        and before[name].requires_grad
        and not _is_kept(before[name].detach(), after[name].detach())
    )
    lossy = bool(mismatched) and _builds(
        kind, model.config, {name: before[name].shape for name in mismatched}
    )
    return PretrainedTrip("transformers", len(before), lost, unexpected, missing, mismatched, lossy)


def _builds(kind: Any, config: Any, shapes: Mapping[str, torch.Size]) -> bool:
    """Whether a class builds parameters of some shapes from a config."""
    with torch.device("meta"):
        built = dict(kind(copy.deepcopy(config)).named_parameters())
    return all(name in built and built[name].shape == shape for name, shape in shapes.items())


def _is_kept(before: torch.Tensor, after: torch.Tensor) -> bool:
    return same_bits(before.to(after.dtype), after) or same_bits(before, after.to(before.dtype))


@contextmanager
def _silent(transformers: Any) -> Iterator[None]:
    """Without transformers' log and progress bars."""
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
