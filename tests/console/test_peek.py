"""`debugkit peek`: what the model sees of a sample, safely printed."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch.utils.data import DataLoader, TensorDataset

from debugkit import Target, cli
from debugkit.console.peek import peek
from debugkit.console.terminal import Page
from debugkit.errors import Unavailable
from debugkit.render.peek import render
from debugkit.testing import blobs, mlp, word_tokenizer

WORDS = ["user:", "bot:", "hello", "[bold]there[/bold]", "berlin"]


def page_of(target: Target, color: Any = "never", **options: Any) -> str:
    page = Page(io.StringIO(), color)
    render(peek(target, **options), page)
    return page.text


def rows(*each: dict[str, list[int]]) -> Target:
    data: Any = [{key: torch.tensor(value) for key, value in row.items()} for row in each]
    return Target(mlp(), DataLoader(data, batch_size=2), tokenizer=word_tokenizer(WORDS))


def test_prompt_answer_and_padding_are_told_apart() -> None:
    row = {
        "input_ids": [2, 4, 6, 5, 7, 3, 0, 0],
        "attention_mask": [1, 1, 1, 1, 1, 1, 0, 0],
        "labels": [-100, -100, -100, -100, 7, 3, -100, -100],
    }
    sample = peek(rows(row, row), count=1)[0]
    assert [(piece.role, piece.text) for piece in sample.pieces] == [
        ("special", "[CLS]"),
        ("text", "user: hello bot:"),
        ("supervised", "[bold]there[/bold] [SEP]"),
        ("masked", "[PAD] [PAD]"),
    ]
    assert (sample.tokens, sample.padding, sample.supervised) == (8, 2, 2)
    text = page_of(rows(row, row), count=1)
    assert "supervised  [bold]there[/bold] [SEP]" in text
    assert "[PAD] x 2" in text


def test_tags_stand_beside_their_tokens() -> None:
    row = {"input_ids": [2, 8, 6, 3], "labels": [-100, 1, 0, -100]}
    assert "[CLS] berlin/1 hello/0 [SEP]" in page_of(rows(row, row), count=1)


def test_masked_words_show_what_they_hide() -> None:
    row = {"input_ids": [2, 1, 6, 3], "labels": [-100, 8, 6, -100]}
    assert "[CLS] [UNK]/berlin hello/= [SEP]" in page_of(rows(row, row), count=1)


def test_targets_of_their_own_are_decoded() -> None:
    row = {"input_ids": [2, 6, 3], "labels": [7, 8, 3, -100]}
    text = page_of(rows(row, row), count=1)
    assert "target      [bold]there[/bold] berlin [SEP]" in text


def test_shifted_targets_are_shown_as_a_text() -> None:
    ids = torch.randint(0, 60, (8, 9), generator=torch.Generator().manual_seed(0))
    target = Target(mlp(), DataLoader(TensorDataset(ids[:, :-1], ids[:, 1:]), batch_size=4))
    sample = peek(target, count=1)[0]
    assert sample.targets[0].text == " ".join(map(str, ids[0, 1:].tolist()))


def test_tensors_texts_and_labels_without_tokens() -> None:
    sample = peek(Target(mlp(), blobs()), count=1)[0]
    assert sample.label in ("0", "1")
    assert sample.facts[0].startswith("[0]: float32 [8], ")
    loader: Any = DataLoader([("so \x1b[31mgood", 1), ("bad", 0)], batch_size=2)  # type: ignore[arg-type]
    assert r"so \x1b[31mgood" in page_of(Target(mlp(), loader), color="always")


def test_colour_marks_what_is_supervised() -> None:
    row = {"input_ids": [2, 6, 8, 3], "labels": [-100, -100, 8, 3]}
    assert "\x1b[1;32m" in page_of(rows(row, row), color="always", count=1)
    assert "\x1b" not in page_of(rows(row, row), count=1)


def test_a_split_that_is_not_there() -> None:
    with pytest.raises(Unavailable, match="eval_loader"):
        peek(Target(mlp(), blobs()), split="eval")


def test_the_command(tmp_path: Path) -> None:
    file = tmp_path / "train.py"
    file.write_text(
        "from debugkit import Target\nfrom debugkit.testing import blobs, mlp\n"
        "print('noise')\ntarget = Target(mlp(), blobs())\nempty = Target(mlp())\n"
    )
    done = CliRunner().invoke(cli.commands, ["peek", str(file), "--samples", "3", "--color", "never"])
    assert done.exit_code == 0, done.output
    assert done.stdout.count("float32 [8]") == 3
    assert "noise" not in done.stdout
    failed = CliRunner().invoke(cli.commands, ["peek", f"{file}:empty"])
    assert failed.exit_code == 2
    assert "no data" in failed.stderr
    assert "Traceback" not in failed.output
