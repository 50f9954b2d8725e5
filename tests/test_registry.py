"""Discovery: installed providers, local folders, and the mistakes in them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from debugkit import Report, Target, UsageError
from debugkit.registry import Registry, load
from debugkit.runner import Run
from debugkit.testing import mlp, run_examples

CHECK = '''
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field

from debugkit import Finding, Target, check, note, warn
{extra}

@dataclass(frozen=True)
class {kind}:
    largest: float

    @staticmethod
    def collect(target: Target, *, scale: float = 1.0) -> "{kind}":
        values = [p.detach().abs().max().item() for p in target.model.parameters()]
        return {kind}(max(values) * scale)


@check
def {name}(weights: {kind}, *, threshold: Annotated[float, Field(gt=0)] = 100.0) -> Iterator[Finding]:
    """A weight is huge."""
    if weights.largest > threshold:
        yield warn(f"the largest weight is {{weights.largest:.3g}}", largest=weights.largest)
    yield note(f"largest weight {{weights.largest:.3g}}")


def good() -> Target:
    return Target(torch.nn.Linear(2, 2))


def bad_factor_1000() -> Target:
    model = torch.nn.Linear(2, 2)
    torch.nn.init.constant_(model.weight, 1000.0)
    return Target(model)
'''


def source(name: str, kind: str, extra: str = "") -> str:
    return CHECK.format(name=name, kind=kind, extra=extra)


@pytest.fixture(autouse=True)
def _own_modules(tmp_path: Path) -> Iterator[None]:
    """Folders of the same name in different tests must not meet in ``sys.modules``."""
    known = set(sys.modules)
    yield
    for name in set(sys.modules) - known:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)) or name.startswith(
            "own_"
        ):
            del sys.modules[name]


def folder(tmp_path: Path, **files: str) -> Path:
    path = tmp_path / "own_checks"
    path.mkdir()
    for name, text in files.items():
        (path / f"{name}.py").write_text(text)
    return path


def test_a_local_folder_adds_checks_evidence_and_examples(tmp_path: Path) -> None:
    registry = load([folder(tmp_path, weights=source("huge_weights", "LargestWeight"))])
    check = registry["huge-weights"]
    assert (check.family, check.provider) == ("own_checks", "own_checks")
    assert "largest-weight" in registry.evidence
    assert [(outcome.example, outcome.ok) for outcome in run_examples(check, registry)] == [
        ("good", True),
        ("bad_factor_1000", True),
    ]


def test_options_of_own_checks_and_evidence_come_from_the_configuration(tmp_path: Path) -> None:
    path = folder(tmp_path, weights=source("huge_weights", "LargestWeight"))
    (tmp_path / "pyproject.toml").write_text(
        '[tool.debugkit]\nload = ["own_checks"]\nselect = ["huge-weights"]\n'
        "[tool.debugkit.checks.huge-weights]\nthreshold = 3\n"
        "[tool.debugkit.evidence.largest-weight]\nscale = 1e3"
    )
    report = Run(Target(mlp()), config=tmp_path / "pyproject.toml").execute()
    assert report["huge-weights"].status == "warn"
    report = Run(
        Target(mlp()), config=tmp_path / "pyproject.toml", settings=["largest-weight.scale=1e-3"]
    ).execute()
    assert report["huge-weights"].status == "pass"
    assert path.is_dir()


def test_sub_folders_are_families_with_or_without_init(tmp_path: Path) -> None:
    path = folder(tmp_path, _helpers="raise RuntimeError('never imported')")
    for family in ("plain", "packaged", "_hidden", ".hidden"):
        (path / family).mkdir()
        (path / family / "one.py").write_text(
            source(f"{family.strip('._')}_weights", f"Of{family.strip('._').title()}")
        )
    (path / "packaged" / "__init__.py").touch()
    registry = load([path])
    own = {check.id: check.family for check in registry.values() if check.provider == "own_checks"}
    assert own == {"plain-weights": "plain", "packaged-weights": "packaged"}


def test_an_installed_package_adds_checks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    registry = load()
    assert registry["spectral-weights"].provider == "acme"
    assert registry["spectral-weights"].family == "spectral"


def install(path: Path) -> None:
    """What an installer leaves behind for a package that provides a check."""
    package = path / "own_acme"
    (package / "spectral").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "spectral" / "__init__.py").touch()
    (package / "spectral" / "weights.py").write_text(source("spectral_weights", "AcmeWeights"))
    info = path / "acme_checks-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-checks\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[debugkit.checks]\nacme = own_acme\n")


def test_a_module_can_be_a_provider(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path)
    (tmp_path / "own_single.py").write_text(source("single_weights", "SingleWeights"))
    entries = tmp_path / "acme_checks-1.0.dist-info" / "entry_points.txt"
    entries.write_text(entries.read_text() + "single = own_single\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert load()["single-weights"].family == "own_single"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"a": source("huge_weights", "Weights1"), "b": source("huge_weights", "Weights2")},
            r"b\.py:\d+: check `huge-weights` exists already at .*a\.py:\d+",
        ),
        ({"a": source("label_balance", "Weights3")}, r"check `label-balance` exists already at"),
        (
            {"a": source("one_weights", "Weights"), "b": source("two_weights", "Weights")},
            r"b\.py:\d+: evidence `weights` exists already at .*a\.py:\d+",
        ),
        ({"a": "import no_such_module"}, r"a\.py:1: `own_checks\.a` can't be imported: ModuleNotFoundError"),
        ({"a": "def broken(:"}, r"a\.py:1: `own_checks\.a` can't be imported: SyntaxError"),
        ({"__init__": "1 / 0"}, r"__init__\.py:1: `.*own_checks` can't be imported: ZeroDivisionError"),
    ],
)
def test_mistakes_are_named_with_their_place(tmp_path: Path, files: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load([folder(tmp_path, **files)])


def test_folders_that_can_not_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no folder"):
        load([tmp_path / "absent"])
    for name, message in (("json", "name of another module"), ("own.checks", "dot in its name")):
        (tmp_path / name).mkdir()
        with pytest.raises(UsageError, match=message):
            load([tmp_path / name])


def test_a_folder_loads_twice(tmp_path: Path) -> None:
    path = folder(tmp_path, weights=source("huge_weights", "LargestWeight"))
    assert load([path]).keys() == load([path, path]).keys()


def test_match(registry: Registry) -> None:
    assert registry.match(["all"]) == set(registry)
    assert registry.match(["loss"]) == {check.id for check in registry.values() if check.family == "loss"}
    assert "logits-vs-probs" in registry.match(["logits-*"])
    with pytest.raises(UsageError, match=r"`logit-vs-probs` \(did you mean `logits-vs-probs`\?\)"):
        registry.match(["logit-vs-probs"])
    with pytest.raises(UsageError, match="did you mean"):
        registry["logit-vs-probs"]


def test_every_built_in_check_tells_its_whole_story(registry: Registry) -> None:
    for check in registry.values():
        names = list(check.examples)
        assert any(name.startswith("good") for name in names), check.id
        assert any(name.startswith("bad") for name in names), check.id
        for heading in ("Why is this bad?", "What to do", "References"):
            assert f"## {heading}" in check.doc, f"{check.id}: {heading}"
        assert check.place.split(":")[0].endswith(f"{check.family}/{check.function.__name__}.py"), check.id
        for name, field in check.signature.options.model_fields.items():
            assert field.description, f"{check.id}: option `{name}` has no description"


def test_the_check_in_the_readme_works(tmp_path: Path) -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    text = readme.partition("# my_checks/huge_weights.py\n")[2].partition("```")[0]
    registry = load([folder(tmp_path, huge_weights=text)])
    outcomes = run_examples(registry["huge-weights"], registry)
    assert [outcome.ok for outcome in outcomes] == [True, True]


@pytest.mark.slow
def test_the_command_line_serves_own_checks(tmp_path: Path) -> None:
    folder(tmp_path, weights=source("huge_weights", "LargestWeight"))
    install(tmp_path / "site")
    (tmp_path / "train.py").write_text(
        "import torch\nfrom debugkit import Target\n\n"
        "def target():\n    return Target(torch.nn.Linear(2, 2))\n"
    )
    (tmp_path / "pyproject.toml").write_text(
        '[tool.debugkit]\nload = ["own_checks"]\nselect = ["huge-weights", "spectral-weights"]\n'
        "[tool.debugkit.checks.huge-weights]\nthreshold = 1e-9\n"
    )

    def debugkit(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "debugkit", *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    listed = debugkit("list")
    assert "huge-weights" in listed
    assert "spectral-weights" in listed
    tested = debugkit("test", "huge-weights,spectral-weights")
    assert "checks tested: 2, problems: none" in tested
    report = Report.from_json(debugkit("check", "train.py", "--format", "json"))
    assert report["huge-weights"].status == "warn"
    assert report["spectral-weights"].status == "pass"
