"""What is shipped: the package list, the wheel, and the sdist that gives the same wheel."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import debugkit

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_the_package_list_is_the_tree() -> None:
    found = {}
    for name, folder in PROJECT["tool"]["setuptools"]["package-dir"].items():
        for file in (ROOT / folder).rglob("*.py"):
            below = file.parent.relative_to(ROOT / folder).parts
            found[".".join([name, *below])] = file.parent
    assert sorted(PROJECT["tool"]["setuptools"]["packages"]) == sorted(found)
    for folder in found.values():
        assert (folder / "__init__.py").is_file(), folder


def test_the_version_is_said_once() -> None:
    assert PROJECT["project"]["version"] == debugkit.__version__
    assert f"## {debugkit.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_ci_runs_the_commands_of_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = [block.partition("```")[0] for block in readme.split("```console\n")[1:]]
    commands = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    for command in (*blocks[0].splitlines(), *blocks[-1].splitlines()):
        assert any(line.startswith(command) for line in commands), command


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("build") is None, reason="needs `pip install build`")
@pytest.mark.skipif(importlib.util.find_spec("setuptools") is None, reason="needs `pip install setuptools`")
def test_the_sdist_gives_the_same_wheel(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for name in ("debugkit", "checks", "pyproject.toml", "README.md", "LICENSE"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        tree.mkdir(exist_ok=True)
        copy(ROOT / name, tree / name)
    direct = wheel(build(tree, tmp_path / "direct", "--wheel"))
    through_sdist = wheel(build(tree, tmp_path / "through_sdist"))
    assert direct == through_sdist
    assert {"debugkit/py.typed", "debugkit/checks/loss/logits_vs_probs.py"} <= set(direct)
    assert {name.split("/")[0].split("-")[0] for name in direct} == {"debugkit"}
    assert any(name.endswith("licenses/LICENSE") for name in direct)


def build(tree: Path, out: Path, *options: str) -> Path:
    """The wheel that ``python -m build`` makes; without options it goes through an sdist."""
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), *options, str(tree)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return next(out.glob("*.whl"))


def wheel(path: Path) -> dict[str, str]:
    """The hash of every file by name; ``RECORD`` follows from the others."""
    with zipfile.ZipFile(path) as archive:
        return {
            name: hashlib.sha256(archive.read(name)).hexdigest()
            for name in archive.namelist()
            if not name.endswith("/RECORD")
        }
