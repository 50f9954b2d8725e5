"""Silent errors that were published with TrainCheck, rebuilt from their descriptions, found without a reference run.

"Training with Confidence: Catching Silent Errors in Deep Learning Training with Automated Proactive Checks", OSDI 2025;
https://github.com/OrderLab/TrainCheck-Evaluation-Workloads describes them.
"""

from __future__ import annotations

import pytest

from .programs import plain, watched

FOUND = [
    ("60335387", "zero-grad", "fail", 3),
    ("84911", "optimizer-coverage", "fail", 0),
    ("115607", "weights-moving", "fail", 20),
    ("33844", "eval-mode", "fail", 0),
    ("67180955", "loader-randomness", "fail", 0),
    ("accelerate_2665", "optimizer-step", "fail", 3),
    ("noncontiguous", "update-ratio", "fail", 0),
    ("noncontiguous", "weights-moving", "warn", 10),
    ("wrapper", "optimizer-step", "fail", 3),
]
MISSED = ["34204", "51800", "702"]


@pytest.mark.parametrize(("name", "check", "status", "latest"), FOUND)
def test_the_error_is_found(name: str, check: str, status: str, latest: int) -> None:
    outcome = watched(f"traincheck_{name}.py", "broken")
    assert outcome.loud[check] == status
    assert outcome.first_seen[check] <= latest


@pytest.mark.parametrize("name", sorted({name for name, *_ in FOUND} | set(MISSED)))
def test_the_mended_program_is_quiet_and_the_same(name: str) -> None:
    script = f"traincheck_{name}.py"
    seen, alone = watched(script, "healthy"), plain(script, "healthy")
    assert seen.error == "None"
    assert seen.printed == alone.printed
    assert not seen.loud
