"""A process that reads checkpoints only does without torch, and so without the evidence of live models.

Importing torch takes longer than judging a small checkpoint. A check that can also judge checkpoints imports what only
a live model gives like this::

    if TYPE_CHECKING or not absent.models:
        from debugkit.probes.gradients import Gradients
    else:
        from debugkit.absent import Absent as Gradients
"""

from __future__ import annotations

from debugkit.evidence import root

models = False
"""Whether live models are absent from this process; set before any check is imported."""


@root
class Absent:
    """Evidence that no moment hands over."""
