"""Run the whole checklist on healthy transformers models of as many architectures as can be built small.

Every model is initialised by its own architecture and gets data that it can learn. A warning or a failure is
therefore a false alarm of a check, or a true property of that architecture; both are listed. Exits 1 when
there is any.
"""

from __future__ import annotations

import argparse
import copy
import fnmatch
import json
import os
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

VOCABULARY, LENGTH, SAMPLES, BATCH = 160, 16, 64, 8
PAD, BOS, EOS, MASK, MARK, FIRST = 0, 1, 2, 4, 5, 10
LEARNING_RATE = 1e-3
LARGEST = 20_000_000

HEADS = {
    "sequence": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING",
    "causal": "MODEL_FOR_CAUSAL_LM_MAPPING",
    "masked": "MODEL_FOR_MASKED_LM_MAPPING",
    "token": "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING",
}

SMALL: dict[int, str] = {
    VOCABULARY: "vocab_size n_vocab text_vocab_size vocab_size_per_layer_input",
    32: "hidden_size d_model n_embd embed_dim dim embedding_size hidden_dim input_dim d_embed emb_dim width "
    "rotary_dim_full attention_hidden_size decoder_hidden_size lm_head_hidden_size dim_model",
    2: "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers num_key_value_heads "
    "num_decoder_layers num_kv_heads num_experts_per_tok num_experts_per_token moe_topk num_blocks num_encoder_layers "
    "top_k_experts attn_num_kv_heads num_attention_groups linear_num_key_heads num_hash_layers block_repeat",
    4: "num_attention_heads n_head n_heads encoder_attention_heads decoder_attention_heads num_heads "
    "num_local_experts num_experts n_routed_experts moe_num_experts linear_num_value_heads rotary_dim "
    "state_size mamba_d_state q_heads attention_heads mamba_n_heads",
    64: "intermediate_size d_ff ffn_dim encoder_ffn_dim decoder_ffn_dim d_inner hidden_dim_ffn inner_dim "
    "ffn_hidden_size max_position_embeddings n_positions n_ctx moe_intermediate_size max_seq_len block_size "
    "shared_expert_intermediate_size expert_ffn_hidden_size mlp_dim dff max_sequence_length",
    8: "head_dim d_kv attention_head_size linear_key_head_dim linear_value_head_dim v_head_dim qk_nope_head_dim "
    "qk_rope_head_dim mamba_d_head mamba_head_dim",
    16: "kv_lora_rank q_lora_rank sliding_window attention_window local_attention",
    1: "n_group topk_group moe_layer_start_index first_k_dense_replace n_shared_experts num_shared_experts "
    "mamba_n_groups n_groups",
}
SIZES = {name: value for value, names in SMALL.items() for name in names.split()}
TOKENS = {
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "decoder_start_token_id": BOS,
    "sep_token_id": EOS,
    "cls_token_id": BOS,
    "mask_token_id": MASK,
    "forced_eos_token_id": None,
    "forced_bos_token_id": None,
}
COMPUTED = ("layer_types", "layers_block_type", "mlp_layer_types", "no_rope_layers", "layers_types")


@dataclass
class Row:
    """What the checklist said about one (architecture, head) pair.

    Attributes:
        architecture: the model type, such as ``bert``.
        head: ``sequence``, ``causal``, ``masked`` or ``token``.
        status: the report's status, or ``unbuilt``.
        reason: why it could not be built.
        alarms: ``[check, status, message]`` of every warn, fail and error.
        skipped: the checks that were skipped, with the reason.
        seconds: wall time of the run.
        passes: forward passes of the run in F (see ``passes.py``).
        parameters: the model's size.
    """

    architecture: str
    head: str
    status: str = "unbuilt"
    reason: str | None = None
    alarms: list[tuple[str, str, str]] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    passes: float = 0.0
    parameters: int = 0


def pairs() -> list[tuple[str, str]]:
    """Every (architecture, head) pair that transformers names."""
    from transformers.models.auto import modeling_auto

    return [
        (architecture, head)
        for head, mapping in HEADS.items()
        for architecture in getattr(modeling_auto, f"{mapping}_NAMES")
    ]


def build(architecture: str, head: str) -> torch.nn.Module:
    """A small, freshly initialised model in train mode that can take a training step.

    Raises:
        Exception: what the architecture raises with the first of :data:`VARIANTS`, when it can't be built small.
    """
    first: Exception | None = None
    for variant in VARIANTS:
        try:
            model = _build(architecture, head, variant)
            batch = torch.utils.data.default_collate(rows(head)[:BATCH])
            with torch.random.fork_rng(devices=[]):
                copy.deepcopy(model)(**batch).loss.backward()
            return model
        except Exception as error:
            first = first or error
            if isinstance(error, (ImportError, KeyError)):
                break
    assert first is not None
    raise first


def _build(architecture: str, head: str, variant: Mapping[str, Any]) -> torch.nn.Module:
    from transformers import CONFIG_MAPPING
    from transformers.models.auto import modeling_auto

    torch.manual_seed(0)
    config = shrink(CONFIG_MAPPING[architecture], head, variant)
    kind = getattr(modeling_auto, HEADS[head])[type(config)]
    kind = kind[0] if isinstance(kind, tuple) else kind
    if (size := _size_of(kind, config)) > LARGEST:
        raise ValueError(f"its configuration stays large: {size / 1e6:.0f} M parameters")
    return kind(config).train()  # type: ignore[no-any-return]


def _size_of(kind: Any, config: Any) -> int:
    """The number of parameters, without the memory for them."""
    with torch.device("meta"):
        model = kind(copy.deepcopy(config))
    return sum(p.numel() for p in model.parameters())


def shrink(kind: Any, head: str, variant: Mapping[str, Any]) -> Any:
    """A configuration of the kind with every size that it has made small."""
    config = kind(**_small(kind, variant))
    if head == "causal":
        for part in _texts(config):
            part.is_decoder = True
            part.use_cache = False
    config.num_labels = 2 if head == "sequence" else 3
    return config


def _small(kind: Any, variant: Mapping[str, Any]) -> dict[str, Any]:
    default = kind()
    names = {*vars(default), *getattr(kind, "attribute_map", {})}
    changes = {name: size for name, size in SIZES.items() if name in names and _is_count(default, name)}
    changes |= {name: token for name, token in TOKENS.items() if name in names}
    changes |= {name: None for name in COMPUTED if name in vars(default)}
    for name in getattr(kind, "sub_configs", {}):
        if (part := getattr(default, name, None)) is not None:
            changes[name] = _small(type(part), variant)
    changes |= {name: value for name, value in variant.items() if name in names}
    return changes | PARTICULAR.get(kind.model_type, {})


def _is_count(config: Any, name: str) -> bool:
    value = getattr(config, name, None)
    return value is None or (isinstance(value, int) and not isinstance(value, bool))


def _texts(config: Any) -> Iterator[Any]:
    yield config
    if (text := config.get_text_config()) is not config:
        yield text


# what some architectures tie to each other, tried in order after the plain small sizes
VARIANTS: list[dict[str, Any]] = [
    {},
    {"num_key_value_heads": 4, "num_kv_heads": 4},
    {"qk_rope_head_dim": 8, "head_dim": 8, "qk_nope_head_dim": 8, "num_key_value_heads": 4, "rotary_dim": 8},
    {"num_hidden_layers": 4, "num_layers": 4},
    {"num_hidden_layers": 8, "num_layers": 8},
    {"head_dim": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "num_key_value_heads": 4},
    {"use_cache": False, "num_hidden_layers": 4},
]
PARTICULAR: dict[str, dict[str, Any]] = {
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "reformer": {
        "axial_pos_shape": [4, 4],
        "axial_pos_embds_dim": [16, 16],
        "attn_layers": ["local", "lsh"],
        "attention_head_size": 8,
        "local_attn_chunk_length": 4,
        "lsh_attn_chunk_length": 4,
        "num_buckets": 2,
    },
    "t5": {"decoder_start_token_id": PAD},
    "xlm": {"causal": True},
    "perceiver": {
        "num_latents": 8,
        "d_latents": 32,
        "num_self_attends_per_block": 2,
        "num_self_attention_heads": 2,
        "num_cross_attention_heads": 2,
        "max_position_embeddings": LENGTH,
    },
    "luke": {"entity_vocab_size": 20, "entity_emb_size": 32},
    "roc_bert": {
        "pronunciation_vocab_size": 20,
        "shape_vocab_size": 20,
        "pronunciation_embed_dim": 16,
        "shape_embed_dim": 16,
    },
    "lilt": {"channel_shrink_ratio": 2, "max_2d_position_embeddings": 64, "hidden_size": 48},
}


def rows(head: str) -> list[dict[str, torch.Tensor]]:
    """Learnable samples of a head: ``input_ids``, ``attention_mask`` and ``labels`` of :data:`LENGTH` tokens."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(FIRST, VOCABULARY, (SAMPLES, LENGTH), generator=generator)
    ids[:, 0], ids[:, -1] = BOS, EOS
    if head == "sequence":
        labels = torch.arange(SAMPLES) % 2
        places = torch.randint(1, LENGTH - 1, (SAMPLES,), generator=generator)
        ids[torch.arange(SAMPLES)[labels == 1], places[labels == 1]] = MARK
    elif head == "token":
        labels = ids % 3
    elif head == "causal":
        ids = ids[:, 1:5].repeat(1, LENGTH // 4)
        labels = ids.clone()
    else:
        steps = torch.arange(LENGTH) * torch.randint(1, 4, (SAMPLES, 1), generator=generator)
        ids = FIRST + (ids[:, 1:2] + steps) % (VOCABULARY - FIRST)
        masked = torch.rand(ids.shape, generator=generator) < 0.15
        masked[:, LENGTH // 2] |= ~masked.any(1)
        labels = ids.masked_fill(~masked, -100)
        ids = ids.masked_fill(masked, MASK)
    mask = torch.ones_like(ids)
    return [
        {"input_ids": i, "attention_mask": m, "labels": y} for i, m, y in zip(ids, mask, labels, strict=True)
    ]


def target_of(architecture: str, head: str) -> Any:
    """The target of a pair."""
    from debugkit import Target

    model = build(architecture, head)
    samples = rows(head)
    if head == "causal" and not _shifts_labels(model, samples):
        samples = [_shifted(row) for row in samples]
    torch.manual_seed(0)
    loader = torch.utils.data.DataLoader(
        samples,  # type: ignore[arg-type]
        batch_size=BATCH,
        shuffle=True,
        generator=torch.Generator().manual_seed(0),
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    return Target(model, loader, optimizer=optimizer, name=f"{architecture}/{head}")


def _shifts_labels(model: torch.nn.Module, samples: list[dict[str, torch.Tensor]]) -> bool:
    """Whether a causal model's own loss holds each output against the next label, as most do."""
    batch = torch.utils.data.default_collate(samples[:BATCH])
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        outputs = copy.deepcopy(model).eval()(**batch)
    scores, labels = outputs.logits, batch["labels"]
    if scores.shape[:2] != labels.shape:
        return True
    in_place = torch.nn.functional.cross_entropy(scores.flatten(0, 1).float(), labels.flatten())
    return abs(float(in_place - outputs.loss)) > 1e-4


def _shifted(row: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {**row, "labels": torch.cat([row["labels"][1:], torch.tensor([-100])])}


def judge(architecture: str, head: str, ignore: str | None, max_cost: str) -> Row:
    """Build one pair and run the checklist on it."""
    from passes import Counter as PassCounter

    from debugkit.errors import one_line
    from debugkit.runner import Run

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    _silence()
    row = Row(architecture, head)
    try:
        target = target_of(architecture, head)
    except (Exception, SystemExit) as error:
        row.reason = one_line(error, 160)
        return row
    row.parameters = sum(p.numel() for p in target.model.parameters())
    counter = PassCounter(BATCH * LENGTH)
    counter.attach(target.model)
    start = time.perf_counter()
    report = Run(target, ignore=ignore, config={"max-cost": max_cost}).execute()
    row.seconds, row.passes, row.status = time.perf_counter() - start, counter.total.cost, report.status
    for result in report.results:
        if result.status in ("warn", "fail"):
            row.alarms += [(result.check, f.level, _line(f)) for f in result.active]
        elif result.status == "error":
            row.alarms.append((result.check, "error", result.reason or ""))
        elif result.status == "skip":
            row.skipped[result.check] = result.reason or ""
    return row


def _line(finding: Any) -> str:
    return f"{finding.where}: {finding.message}" if finding.where else str(finding.message)


def _silence() -> None:
    from transformers.utils import logging

    logging.set_verbosity_error()


def show(row: Row) -> str:
    """One line per alarm, or one for the pair."""
    name = f"{row.architecture:<26}{row.head:<10}"
    if row.status == "unbuilt":
        return f"{name}{'-':<7}{row.reason}"
    line = f"{name}{row.status:<7}{row.seconds:6.1f} s {row.passes:6.1f} F"
    return "\n".join([line, *(f"    {level} {check}: {message}" for check, level, message in row.alarms)])


def summary(found: list[Row]) -> str:
    """Counts by status, alarms by check, skips by check."""
    built = [row for row in found if row.status != "unbuilt"]
    statuses = Counter(row.status for row in built)
    alarms = Counter((check, level) for row in built for check, level in {a[:2] for a in row.alarms})
    skips = Counter(check for row in built for check in row.skipped)
    lines = [
        f"{len(built)} pairs judged ({len({row.architecture for row in built})} architectures): "
        + ", ".join(f"{count} {status}" for status, count in statuses.most_common()),
        f"{len(found) - len(built)} pairs could not be built",
    ]
    lines += [f"  {level} {check}: {count} pairs" for (check, level), count in alarms.most_common()]
    lines += [f"  skip {check}: {count} pairs" for check, count in skips.most_common()]
    if built:
        lines.append(
            f"  {sum(row.seconds for row in built):.0f} s in all; slowest {max(row.seconds for row in built):.1f} s; "
            f"most passes {max(row.passes for row in built):.1f} F"
        )
    return "\n".join(lines)


def main() -> int:
    """Judge the pairs that the options choose."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", metavar="PATTERN", help="ARCHITECTURE/HEAD glob, such as 'bert/*'")
    parser.add_argument("--limit", type=int, metavar="N", help="at most N pairs")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all rows to a file")
    parser.add_argument("--ignore", help="checks or families to leave out")
    parser.add_argument("--max-cost", default="training", help="as for debugkit check (%(default)s)")
    arguments = parser.parse_args()
    chosen = [pair for pair in pairs() if fnmatch.fnmatchcase("/".join(pair), arguments.only or "*")]
    chosen = chosen[: arguments.limit]
    found: list[Row] = []
    for row in _rows(chosen, judge, arguments):
        found.append(row)
        print(show(row), flush=True)
    print(f"\n{summary(found)}")
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in found], indent=1))
    return int(any(row.alarms for row in found))


def _rows(
    chosen: list[tuple[str, str]], function: Callable[..., Row], arguments: argparse.Namespace
) -> Iterator[Row]:
    rest = (arguments.ignore, arguments.max_cost)
    if arguments.jobs <= 1:
        yield from (function(*pair, *rest) for pair in chosen)
        return
    with ProcessPoolExecutor(arguments.jobs, mp_context=get_context("spawn")) as pool:
        yield from (future.result() for future in [pool.submit(function, *pair, *rest) for pair in chosen])


if __name__ == "__main__":
    sys.exit(main())
