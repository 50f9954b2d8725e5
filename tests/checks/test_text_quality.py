"""text-quality beyond its own examples."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import debugkit
from debugkit import Target
from debugkit.report import Result
from debugkit.testing import word_tokenizer

PANGRAM = "the quick brown fox jumps over a lazy dog while seven wizards brew ten jugs of ale"
WORDS = PANGRAM.split()


def sentences(count: int = 64) -> list[str]:
    draw = random.Random(0)
    return [" ".join(draw.choices(WORDS, k=8)) for _ in range(count)]


def judge(rows: list[Any], tokenizer: Any = None, **config: Any) -> Result:
    model = torch.nn.Linear(1, 2)
    loader: DataLoader[Any] = DataLoader(rows, batch_size=8, shuffle=True)  # type: ignore[arg-type]
    target = Target(model, loader, training_step=lambda model, batch: model.weight.sum(), tokenizer=tokenizer)
    return debugkit.run(target, select="text-quality", config=config)["text-quality"]


def labelled(texts: list[str]) -> list[Any]:
    return [(text, number % 2) for number, text in enumerate(texts)]


HEALTHY: dict[str, list[str]] = {
    "sentences": sentences(),
    "languages": [
        f"{text} {number}"
        for number in range(8)
        for text in (
            "Größe läßt grüßen",
            "ça va très bien, Éloïse — “déjà vu”",
            "São Paulo não é longe",
            "Привет, как дела?",
            "你好，世界",
            "日本語のテキスト",
            "مرحبا بالعالم",
            "naïve café 🙂🎉",
        )
    ],
    "words with a capital accent before a mark": [f"CAFÉ… VOILÀ” “Ü” {text}" for text in sentences()],
    "molecules": ["".join(random.Random(seed).choices("CNOc1=()[]", k=24)) for seed in range(64)],
    "code": [f"def f{n}(x):\n\treturn [x, {n}]\n" for n in range(64)],
    "calls": [json.dumps({"name": "search", "args": {"q": text, "k": [1, 2]}}) for text in sentences()],
    "numbers in brackets": [f"[{n}, {n + 1}, {n + 2}]" for n in range(64)],
    "short answers": ["none", "yes", "no", "null"] * 16,
    "line breaks of films": [f"{text}.<br /><br />{text}" for text in sentences()],
    "addresses": [f"{text} https://example.org/{n}" for n, text in enumerate(sentences())],
    "instructions": [f"Below is an instruction that describes a task.\n\n{text}" for text in sentences()],
    "one empty text of many": ["", *sentences(199)],
    "too few to judge": ["", "", *sentences(10)],
}


@pytest.mark.parametrize("texts", HEALTHY.values(), ids=HEALTHY)
def test_natural_texts_are_quiet(texts: list[str]) -> None:
    result = judge(labelled(texts))
    assert result.status == "pass", result


def every(step: int, broken: Any) -> list[str]:
    return [broken(text) if number % step == 0 else text for number, text in enumerate(sentences())]


BROKEN: dict[str, tuple[list[str], str]] = {
    "empty": (every(10, lambda text: ""), "are empty"),
    "white space": (every(10, lambda text: " \n\t"), "are empty"),
    "nan": (every(10, lambda text: "nan"), "placeholder"),
    "None": (every(10, lambda text: "None"), "placeholder"),
    "latin-1": (every(10, lambda text: f"{text} é ü".encode().decode("latin-1")), "Windows-1252"),
    "cp1252": (every(10, lambda text: f"“{text}’s”".encode().decode("cp1252", "replace")), "Windows-1252"),
    "cyrillic": (every(10, lambda text: "привет мир".encode().decode("latin-1")), "Windows-1252"),
    "replaced": (every(10, lambda text: f"{text} é".encode().decode("ascii", "replace")), "U+FFFD"),
    "lists": (every(1, lambda text: str(text.split())), "Python value"),
    "bytes": (every(1, lambda text: str(text.encode())), "Python value"),
    "mappings": (every(1, lambda text: str({"text": text})), "Python value"),
    "tensors": (every(1, lambda text: str(torch.tensor([1, 2, 3]))), "Python value"),
    "objects": (every(1, lambda text: f"{object()}"), "Python value"),
    "nul": (every(10, lambda text: "\x00".join(text)), "control characters"),
    "twice": (every(10, lambda text: f"{text} &amp;quot;so&amp;quot;"), "escaped twice"),
    "entities": (every(2, lambda text: f"it&#39;s {text} &amp; more"), "escaped characters"),
    "parted entities": (every(2, lambda text: f"it & # 39 ; s {text} & quot ;"), "escaped characters"),
    "pages": (every(1, lambda text: f"<div class='a'><p>{text}</p><br/><img src='x'></div>"), "HTML tags"),
}


@pytest.mark.parametrize(("texts", "said"), BROKEN.values(), ids=BROKEN)
def test_what_is_broken_is_named(texts: list[str], said: str) -> None:
    result = judge(labelled(texts))
    assert result.status == "warn", result
    loud = [finding for finding in result.findings if finding.level == "warn"]
    assert said in loud[0].message
    assert (loud[0].where or "").startswith("train[")


def test_most_texts_empty_is_a_failure() -> None:
    assert judge(labelled(["", "", *sentences(1)] * 12)).status == "fail"


def test_the_share_is_an_option() -> None:
    rows = labelled(BROKEN["empty"][0])
    assert judge(rows, checks={"text-quality": {"max-broken": 0.2}}).status == "pass"


def test_a_sample_with_several_texts_is_empty_when_all_are() -> None:
    rows = [{"instruction": text, "input": "", "output": text, "label": 0} for text in sentences()]
    result = judge(rows)
    assert result.status == "pass"
    assert any("`input` is empty in 64 of 64 samples" in finding.message for finding in result.findings)


def test_names_and_classes_are_no_texts() -> None:
    rows = [(torch.randn(4), f"/data/{n}.png", ["cat", ""][n % 2]) for n in range(64)]
    assert judge(rows).status == "skip"


def test_remarks_beside_features_may_be_missing() -> None:
    rows = [{"x": torch.randn(4), "remark": text if n % 4 else ""} for n, text in enumerate(sentences())]
    assert judge(rows).status == "pass"


def encoded(texts: list[str]) -> tuple[list[Any], Any]:
    tokenizer = word_tokenizer(WORDS)
    made = tokenizer(texts, padding="max_length", max_length=12)
    keys = ("input_ids", "attention_mask")
    return [{key: torch.tensor(made[key][n]) for key in keys} for n in range(len(texts))], tokenizer


def test_token_ids_are_decoded() -> None:
    result = judge(*encoded(sentences()))
    assert result.status == "pass"
    assert "64 decoded texts" in result.findings[0].message
    result = judge(*encoded(BROKEN["empty"][0]))
    assert result.status == "warn"
    assert "empty but for special tokens" in result.findings[0].message
    assert judge(*encoded([""] * 32)).status == "fail"


def test_unknown_words_are_no_empty_text() -> None:
    assert judge(*encoded(["completely foreign"] * 8 + sentences(24))).status == "pass"


def test_ids_need_a_tokenizer() -> None:
    rows, _ = encoded(sentences())
    result = judge(rows)
    assert result.status == "skip"
    assert "Target(tokenizer=...)" in (result.reason or "")


def test_numbers_are_a_skip() -> None:
    result = judge([(torch.randn(4), 1)] * 16)
    assert result.status == "skip"
