from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from debugkit.console.spec import Spec, load_target
from debugkit.errors import UsageError
from debugkit.target import Target

GOOD = """\
import torch
from debugkit import Target
from debugkit.testing import blobs, mlp

net = mlp()
target = Target(net, blobs(), torch.nn.CrossEntropyLoss(), name="ready")

def make_target() -> Target:
    return Target(mlp(), blobs(), torch.nn.CrossEntropyLoss(), name="made")

def takes_a_path(path, *, seed=0):
    return target

def raises():
    raise ValueError("no\\nluck")

def gives_none():
    pass

def bad_model():
    return Target(3)

def quits():
    raise SystemExit(4)

number = 3
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory; modules imported from it are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture
def train(folder: Path) -> Path:
    (folder / "train_it.py").write_text(GOOD)
    return folder


def mistake(spec: str) -> str:
    with pytest.raises(UsageError) as caught:
        load_target(spec)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("train_it.py", ("train_it.py", "target", True)),
        ("train_it.py:make", ("train_it.py", "make", True)),
        ("./train_it.py:a.b", ("./train_it.py", "a.b", True)),
        ("package.module", ("package.module", "target", False)),
        ("package.module:attr", ("package.module", "attr", False)),
    ],
)
def test_parsing(train: Path, text: str, parsed: tuple[str, str, bool]) -> None:
    spec = Spec.parse(text)
    assert (spec.module, spec.attribute, spec.is_file) == parsed


def test_a_target_and_a_factory(train: Path) -> None:
    assert load_target("train_it.py").name == "ready"
    assert load_target("train_it.py:make_target").name == "made"
    assert load_target("train_it:make_target").name == "made"
    assert sys.modules["train_it"].target is load_target("train_it.py")
    assert sys.path[0] == str(train)


def test_a_module_in_a_package(folder: Path) -> None:
    (folder / "pkg_of_mine").mkdir()
    (folder / "pkg_of_mine" / "runs.py").write_text(GOOD)
    assert load_target("pkg_of_mine.runs").name == "ready"
    assert "did you mean `pkg_of_mine.runs`?" in mistake("pkg_of_mine.run")
    (folder / "pkg_of_mine" / "relative.py").write_text("from . import runs\n")
    assert "name it as a module" in mistake("pkg_of_mine/relative.py")


def test_a_file_named_like_a_loaded_module(folder: Path) -> None:
    (folder / "json.py").write_text(GOOD)
    before = sys.modules["json"]
    assert load_target("json.py").name == "ready"
    assert sys.modules["json"] is before


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("", "SPEC is empty"),
        ("trian_it.py", "there is no file `trian_it.py` (did you mean `train_it.py`?)"),
        (".", "`.` is a folder"),
        ("a b", "`a b` is neither a Python file nor a module's name"),
        ("train_it.py:a-b", "`a-b` is no attribute's name"),
        ("train_of_it", "no module is called `train_of_it` (did you mean `train_it`?)"),
        (
            "train_it.py:targt",
            "`train_it.py` has no `targt` (did you mean `target`?); it offers `train_it.py:target`, `train_it.py:make_target`",
        ),
        ("train_it.py:number", "`train_it.py:number` gives an `int`, not a `debugkit.Target`"),
        ("train_it.py:target.nam", "`train_it.py` has no `target.nam` (did you mean `name`?)"),
        ("train_it.py:takes_a_path", "needs arguments (`path`)"),
        ("train_it.py:raises", "`train_it.py:raises` raised: ValueError: no luck (train_it.py:15)"),
        ("train_it.py:gives_none", "gives `None`, not a `debugkit.Target`; a factory must return it"),
        ("train_it.py:bad_model", "`model` must be a torch.nn.Module"),
        ("train_it.py:quits", "ends the program: SystemExit: 4 (train_it.py:24)"),
        (
            "train_it.py:net",
            "gives a `Sequential`, not a `debugkit.Target`; wrap it: `Target(net, train_loader, ...)`",
        ),
        ("train_it.py:Target", "gives the class `Target`"),
    ],
)
def test_mistakes_are_one_sentence(train: Path, spec: str, sentence: str) -> None:
    assert sentence in mistake(spec)


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("x = (\n", "SyntaxError: '(' was never closed (broken_file.py:1)"),
        ("import no_such_thing\n", "ModuleNotFoundError: No module named 'no_such_thing' (broken_file.py:1)"),
        (
            "import sys\nsys.exit('bye')\n",
            "`broken_file.py` ends the program on import: SystemExit: bye (broken_file.py:2)",
        ),
        (
            "def f():\n    1 / 0\nf()\n",
            "can't be imported: ZeroDivisionError: division by zero (broken_file.py:2)",
        ),
        ("x = 1\n", "has no `target`; define `target = Target(model, train_loader, ...)` at module level"),
    ],
)
def test_files_that_do_not_load(folder: Path, source: str, sentence: str) -> None:
    (folder / "broken_file.py").write_text(source)
    assert sentence in mistake("broken_file.py")
    if "no `target`" not in sentence:
        assert "broken_file" not in sys.modules


def test_the_nearest_of_many_factories_are_named(folder: Path) -> None:
    names = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "main"]
    made = "".join(f"def {name}(): return Target(torch.nn.Linear(1, 1))\n" for name in names)
    (folder / "zoo_of_mine.py").write_text(f"{GOOD}{made}def helper(): return 1\n")
    said = mistake("zoo_of_mine.py:bta")
    assert "(did you mean `beta`?); it offers `zoo_of_mine.py:beta`, " in said
    assert said.count("zoo_of_mine.py:") == 5
    assert "helper" not in said
    assert ":main" not in said
    assert re.search(r" and \d+ more$", said)


def test_the_files_own_command_line_is_its_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["debugkit", "check", "parses.py", "--fail-on", "warn"])
    (folder / "parses.py").write_text("import argparse\nargparse.ArgumentParser().parse_args()\n" + GOOD)
    assert load_target("parses.py").name == "ready"
    assert sys.argv[1] == "check"


def test_interrupt_passes(folder: Path) -> None:
    (folder / "stopped.py").write_text("raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        load_target("stopped.py")


def test_a_trainer_becomes_a_target(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "with_trainer.py").write_text(
        GOOD + "\nclass Trainer:\n    train_dataset = []\n    args = None\n\ntrainer = Trainer()\n"
    )
    ready = load_target("with_trainer.py")
    monkeypatch.setattr(Target, "from_trainer", lambda trainer: ready)
    assert load_target("with_trainer.py:trainer") is ready
    assert "gives the class `Trainer`" in mistake("with_trainer.py:Trainer")
