"""Frozen embedding tables, and the state of the model around them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from debugkit.errors import Unavailable
from debugkit.evidence import Cost
from debugkit.probes.initial_state import InitialState
from debugkit.target import Target
from debugkit.weights.model_matrices import is_table, unreadable
from debugkit.weights.table_origin import Origin, origin_of


@dataclass(frozen=True)
class FrozenTables:
    """The embedding tables that are frozen, where there are any.

    Attributes:
        origins: where the values of each come from, by the module's name.
    """

    cost: ClassVar[Cost] = "static"
    origins: Mapping[str, Origin]

    @staticmethod
    def collect(target: Target) -> FrozenTables:
        """Judge the values of each frozen table.

        Raises:
            Unavailable: no embedding table is frozen.
        """
        origins = {
            name: origin_of(weight.detach())
            for name, module in target.model.named_modules()
            if is_table(module)
            and (weight := module._parameters.get("weight")) is not None
            and not weight.requires_grad
            and unreadable(weight) is None
        }
        if not origins:
            raise Unavailable("no embedding table is frozen")
        return FrozenTables(origins)


@dataclass(frozen=True)
class FrozenState:
    """The state of a model that has frozen tables; others are spared the spectra.

    Attributes:
        tables: the frozen tables.
        layers: the state of the weight matrices around them.
    """

    cost: ClassVar[Cost] = "static"
    tables: FrozenTables
    layers: InitialState

    @staticmethod
    def collect(tables: FrozenTables, layers: InitialState) -> FrozenState:
        """Only where a table is frozen: needs are collected in order."""
        return FrozenState(tables, layers)
