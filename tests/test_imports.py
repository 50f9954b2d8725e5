"""Imports point one way, and cost nothing before they are needed."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

FRONT = {"cli", "gate", "integrations", "pytest_plugin", "watch"}
ENGINE = {"config", "registry", "report", "runner"}
FRONT_HELPERS = {"commands", "__init__", "__main__", "console", "testing"}


def modules() -> Iterator[tuple[str, Path]]:
    """``(part, file)``: the part of debugkit that a file belongs to, or ``checks``."""
    for path in sorted((ROOT / "debugkit").rglob("*.py")):
        yield path.relative_to(ROOT / "debugkit").parts[0].removesuffix(".py"), path
    for path in sorted((ROOT / "checks").rglob("*.py")):
        yield "checks", path


def imported(path: Path, *, nested: bool) -> set[str]:
    """Names of imported modules; ``nested`` adds imports in functions and under ``TYPE_CHECKING``."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found: set[str] = set()
    for node in ast.walk(tree) if nested else tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def parts(path: Path) -> set[str]:
    """The parts of debugkit that a file imports when it is imported."""
    return {name.split(".")[1] for name in imported(path, nested=False) if name.startswith("debugkit.")}


def test_nothing_in_the_core_imports_a_check() -> None:
    for part, path in modules():
        names = imported(path, nested=True)
        assert not {name for name in names if name.split(".")[0] == "checks"}, path
        if part != "checks":
            assert not {name for name in names if name.startswith("debugkit.checks")}, path


@pytest.mark.parametrize(
    ("part", "forbidden"),
    [
        ("checks", FRONT | ENGINE | {"console", "render"}),
        ("probes", FRONT | ENGINE | {"console", "render", "testing"}),
        (
            "render",
            FRONT | {"runner", "config", "registry", "check", "evidence", "probes", "sandbox", "target"},
        ),
        ("runner", FRONT | {"render", "probes", "testing"}),
        ("config", FRONT | {"render", "probes", "runner"}),
        ("registry", FRONT | {"render", "probes", "runner", "config", "report"}),
        ("report", FRONT | {"render", "probes", "runner", "config", "registry", "evidence"}),
    ],
)
def test_imports_point_one_way(part: str, forbidden: set[str]) -> None:
    for own, path in modules():
        if own == part:
            assert not parts(path) & forbidden, path.relative_to(ROOT)


def test_the_core_does_not_know_who_uses_it() -> None:
    for part, path in modules():
        if part not in FRONT | ENGINE | FRONT_HELPERS | {"checks", "probes", "render"}:
            assert not parts(path) & (FRONT | ENGINE | {"render"}), path.relative_to(ROOT)


def test_sibling_checks_are_imported_relatively() -> None:
    for part, path in modules():
        if part == "checks":
            assert not {name for name in imported(path, nested=True) if name.startswith("debugkit.checks")}, (
                path
            )


def measure(statement: str) -> tuple[float, set[str]]:
    """CPU seconds of a statement in a fresh interpreter, the best of three, and the modules it loaded."""
    program = (
        "import json, sys, time; start = time.process_time()\n"
        f"{statement}\n"
        "print(json.dumps([time.process_time() - start, list(sys.modules)]), file=sys.__stdout__)"
    )
    runs = []
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        runs.append(json.loads(done.stdout.splitlines()[-1]))
    return min(seconds for seconds, _ in runs), set(runs[0][1])


HELP = """
import contextlib, io
from debugkit.cli import commands
with contextlib.redirect_stdout(io.StringIO()):
    commands(["--help"], standalone_mode=False)
"""


@pytest.mark.parametrize(
    ("statement", "seconds", "forbidden"),
    [
        ("import debugkit", 0.1, {"torch", "numpy", "pydantic", "rich"}),
        ("import debugkit.pytest_plugin", 0.3, {"torch", "numpy", "pydantic", "rich"}),
        (HELP, 0.3, {"torch", "numpy", "transformers"}),
    ],
    ids=["import debugkit", "import debugkit.pytest_plugin", "debugkit --help"],
)
def test_nothing_heavy_is_imported_early(statement: str, seconds: float, forbidden: set[str]) -> None:
    cpu, loaded = measure(statement)
    print(f"{cpu * 1000:.0f} ms of CPU")
    assert not loaded & forbidden
    assert cpu < 2 * seconds


def test_public_names_load_on_demand() -> None:
    import debugkit

    for name in debugkit.__all__:
        assert getattr(debugkit, name) is not None
    assert set(debugkit.__all__) <= set(dir(debugkit))
    assert callable(debugkit.check)
    assert callable(debugkit.gate)
    with pytest.raises(AttributeError, match="no attribute 'chekc'"):
        _ = debugkit.chekc  # type: ignore[attr-defined]
