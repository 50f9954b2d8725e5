"""The loaders as streams, each opened once for all that read it."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field

from debugkit.data.stream import Stream
from debugkit.errors import Unavailable
from debugkit.evidence import Cost
from debugkit.sandbox import Sandbox
from debugkit.state.objects import one_way, reachable
from debugkit.target import Target

Timeout = Annotated[float, Field(gt=0, description="seconds to wait for one batch")]


class TrainStream(Stream):
    """The batches of ``train_loader`` in loader order."""

    cost: ClassVar[Cost] = "data"

    @staticmethod
    def collect(target: Target, sandbox: Sandbox, *, timeout: Timeout = 120.0) -> TrainStream:
        """Open the loader.

        Raises:
            Unavailable: the target has no ``train_loader``.
            Broken: the loader can't be iterated.
        """
        if target.train_loader is None:
            raise Unavailable("the target has no data; pass `Target(model, train_loader)`")
        _warn_of("train_loader", sandbox.one_way, sandbox)
        return TrainStream(target.train_loader, "train_loader", timeout)


class EvalStream(Stream):
    """The batches of ``eval_loader`` in loader order."""

    cost: ClassVar[Cost] = "data"

    @staticmethod
    def collect(target: Target, sandbox: Sandbox, *, timeout: Timeout = 120.0) -> EvalStream:
        """Open the loader.

        Raises:
            Unavailable: the target has no ``eval_loader``, or the training data would be used up by reading it.
            Broken: the loader can't be iterated.
        """
        if target.eval_loader is None:
            raise Unavailable("the target has no evaluation data; pass `Target(eval_loader=...)`")
        used_up = one_way(reachable(target.eval_loader, most=_LOOKED_INTO))
        if used_up and _shares_an_iterator(target):
            raise Unavailable("`eval_loader` reads from the same iterator as `train_loader`")
        _warn_of("eval_loader", used_up, sandbox)
        return EvalStream(target.eval_loader, "eval_loader", timeout)


_LOOKED_INTO = 2_000


def _shares_an_iterator(target: Target) -> bool:
    parts = [
        {id(value) for value in reachable(loader, most=_LOOKED_INTO) if one_way([value])}
        for loader in (target.train_loader, target.eval_loader)
    ]
    return bool(parts[0] & parts[1])


def _warn_of(name: str, used_up: list[Any], sandbox: Sandbox) -> None:
    if used_up:
        sandbox.notices.append(
            f"`{name}` reads from a `{used_up[0]}`, which can't be rewound: what was read is gone "
            "from it; make a fresh loader to train on"
        )
