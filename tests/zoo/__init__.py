"""The zoo: programs that carry one real mistake, each with the same program without it.

A pair is one factory: ``factory(broken=True)`` builds the program with the mistake and
``factory(broken=False)`` its healthy twin.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass

from debugkit import Target

Factory = Callable[[bool], Target]


@dataclass(frozen=True)
class Pair:
    """A mistake and its healthy twin.

    Attributes:
        name: the factory's name.
        check: the check that has to report it.
        level: the verdict it deserves.
        source: where the mistake was seen.
        make: builds the target; the argument says whether it is broken.
        where: text that has to appear in the finding's place, message or location.
    """

    name: str
    check: str
    level: str
    source: str
    make: Factory
    where: str | None = None

    def example(self, broken: bool) -> Callable[[], Target]:
        """The broken program, or its twin, as an example: with the options that the factory carries."""
        return functools.update_wrapper(functools.partial(self.make, broken), self.make)


PAIRS: dict[str, Pair] = {}


def pair(
    check: str, level: str = "fail", *, source: str, where: str | None = None
) -> Callable[[Factory], Factory]:
    """Enter a factory into the zoo."""

    def enter(make: Factory) -> Factory:
        name = make.__name__
        assert name not in PAIRS, f"two pairs are called {name}"
        PAIRS[name] = Pair(name, check, level, source, make, where)
        return make

    return enter


def load_zoo() -> dict[str, Pair]:
    """Import every file of the zoo and give its pairs by name."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    return PAIRS
