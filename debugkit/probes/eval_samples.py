"""The evaluation samples: one bounded pass over the loader."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from debugkit.data.labels import LabelReader, Labels
from debugkit.data.rows import RowReader, Rows
from debugkit.evidence import Cost
from debugkit.probes.samples import ignored_labels, scan
from debugkit.probes.stream import EvalStream
from debugkit.target import Target


@dataclass(frozen=True, eq=False)
class EvalSamples:
    """What was seen of the evaluation data.

    Attributes:
        rows: the scanned samples, key by key.
        labels: their labels.
    """

    cost: ClassVar[Cost] = "data"
    rows: Rows
    labels: Labels

    @staticmethod
    def collect(
        target: Target,
        stream: EvalStream,
        *,
        max_samples: Annotated[int, Field(gt=0, description="samples to scan at most")] = 2048,
        max_seconds: Annotated[float, Field(gt=0, description="seconds to scan at most")] = 10.0,
    ) -> EvalSamples:
        """Scan the loader from its start.

        Raises:
            Broken: the loader raised, or is empty.
        """
        labels, rows = LabelReader(ignored_labels(target)), RowReader("eval")
        complete, _ = scan(stream, target.eval_loader, [labels.add, rows.add], max_samples, max_seconds)
        return EvalSamples(rows.read(complete, stream.indices), labels.read())
