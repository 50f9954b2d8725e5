"""What parameters and models are called: dotted names below the outermost modules that are called."""

from __future__ import annotations

import inspect

import torch

from debugkit.tracing.source import is_library_class

_BATCH_NORMS = torch.nn.modules.batchnorm._BatchNorm
_INSTANCE_NORMS = torch.nn.modules.instancenorm._InstanceNorm
_DROPOUTS = torch.nn.modules.dropout._DropoutNd


class Names:
    """Dotted names of the parameters of the models seen so far."""

    def __init__(self) -> None:
        self._names: dict[int, str] = {}
        self._modules: dict[int, str] = {}

    def learn(self, model: torch.nn.Module) -> None:
        """Name what a model holds; the first name stays."""
        for name, parameter in model.named_parameters(remove_duplicate=False):
            self._names.setdefault(id(parameter), name.removeprefix("_orig_mod.").removeprefix("module."))
        for name, module in model.named_modules():
            self._modules.setdefault(id(module), name or type(module).__name__)

    def knows(self, parameter: torch.Tensor) -> bool:
        """Whether a model holds a parameter."""
        return id(parameter) in self._names

    def of(self, parameter: torch.Tensor) -> str:
        """The name of a parameter, or its shape where no model holds it."""
        shape = "x".join(map(str, parameter.shape)) or "scalar"
        return self._names.get(id(parameter), f"unnamed {shape}")

    def module(self, module: torch.nn.Module) -> str:
        """The name of a module."""
        return self._modules.get(id(module), type(module).__name__)


def mode_dependent(model: torch.nn.Module) -> tuple[str, ...]:
    """What in a model acts otherwise in train mode than in eval mode, such as ``dropout (Dropout p=0.1)``."""
    found = []
    for name, module in model.named_modules():
        if isinstance(module, _DROPOUTS):
            if module.p > 0:
                found.append(f"{name} ({type(module).__name__} p={module.p:g})")
        elif isinstance(module, _BATCH_NORMS) or (
            isinstance(module, _INSTANCE_NORMS) and module.track_running_stats
        ):
            found.append(f"{name} ({type(module).__name__})")
        elif isinstance(module, torch.nn.RNNBase):
            if module.dropout > 0 and module.num_layers > 1:
                found.append(f"{name} (dropout={module.dropout:g})")
        elif isinstance(module, torch.nn.MultiheadAttention):
            if module.dropout > 0:
                found.append(f"{name} (dropout={module.dropout:g})")
        elif not is_library_class(type(module)) and _drops_by_hand(module):
            found.append(f"{name or type(module).__name__} (functional dropout)")
    return tuple(found)


def _drops_by_hand(module: torch.nn.Module) -> bool:
    """Whether a user's own ``forward`` reads ``self.training`` and names dropout."""
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    names = code.co_names if code is not None else ()
    return "training" in names and any("dropout" in name for name in names)
