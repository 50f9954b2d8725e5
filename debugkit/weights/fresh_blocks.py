"""Whole blocks of a stack that were never trained, beside blocks that were."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass

from debugkit.probes.initial_state import FAR, FEWEST_TRAINED, InitialState
from debugkit.probes.layer_spectra import LayerSpectra

_FEWEST_LAYERS = 2
_FEWEST_BLOCKS = 4
_TAIL_SHARE = 0.25


@dataclass(frozen=True)
class FreshBlocks:
    """The fresh blocks of one stack.

    Attributes:
        stack: its dotted name.
        fresh: numbers of the blocks whose layers all look like their initialisation.
        trained: numbers of those whose layers are trained.
        among: whether a trained block comes after a fresh one, or more than the last quarter is fresh.
    """

    stack: str
    fresh: tuple[int, ...]
    trained: tuple[int, ...]
    among: bool

    def holds(self, parameter: str) -> bool:
        """Whether a parameter is in one of the fresh blocks."""
        return any(parameter.startswith(f"{self.stack}.{number}.") for number in self.fresh)


def fresh_blocks(spectra: LayerSpectra, state: InitialState) -> list[FreshBlocks]:
    """The stacks that have fresh blocks beside blocks far from their initialisation."""
    if state.count("trained") < FEWEST_TRAINED or state.distance < FAR:
        return []
    stacks: dict[str, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    for layer in spectra.judged:
        if match := re.match(r"(.*?)\.(\d+)\.", layer.parameter):
            stacks[match[1]][int(match[2])].append(state.state(layer))
    found = []
    for stack, blocks in stacks.items():
        known = {
            number: {kind for kind in states if kind != "undetermined"}
            for number, states in sorted(blocks.items())
            if sum(kind != "undetermined" for kind in states) >= _FEWEST_LAYERS
        }
        fresh = tuple(number for number, kinds in known.items() if kinds == {"initial"})
        trained = tuple(number for number, kinds in known.items() if "trained" in kinds)
        if fresh and trained and len(known) >= _FEWEST_BLOCKS:
            share = len(fresh) / len(known)
            among = fresh[0] < trained[-1] or (share > _TAIL_SHARE and len(fresh) > 1)
            found.append(FreshBlocks(stack, fresh, trained, among))
    return found
