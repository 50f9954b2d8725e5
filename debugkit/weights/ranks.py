"""Several processes that share one analysis."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Ranks:
    """This process among its peers.

    Attributes:
        rank: its number.
        world: how many there are.
        gather: hands an object to all and returns everybody's, in the order of ranks.
    """

    rank: int
    world: int
    gather: Callable[[Any], list[Any]]


@contextmanager
def torchrun_ranks() -> Iterator[Ranks | None]:
    """The processes that ``torchrun`` started, joined over gloo; ``None`` when there is only this one."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or "RANK" not in os.environ:
        yield None
        return
    import torch.distributed as distributed

    joined = distributed.is_initialized()
    if not joined:
        distributed.init_process_group("gloo")
    try:
        yield Ranks(distributed.get_rank(), distributed.get_world_size(), _gather)
    finally:
        if not joined:
            distributed.destroy_process_group()


def _gather(mine: Any) -> list[Any]:
    import torch.distributed as distributed

    everybody: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(everybody, mine)
    return everybody
