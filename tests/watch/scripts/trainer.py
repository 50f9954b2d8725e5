"""A transformers Trainer with evaluation, accumulation and a best checkpoint; argv[1] is a mistake."""

import sys
import tempfile

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)

BUG = sys.argv[1] if len(sys.argv) > 1 else ""
torch.manual_seed(0)
config = BertConfig(
    vocab_size=64,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=64,
    max_position_embeddings=16,
)
model = BertForSequenceClassification(config)


def rows(count):
    ids = torch.randint(4, 64, (count, 12))
    labels = (ids[:, 1] > 32).long()
    return [{"input_ids": row, "labels": label} for row, label in zip(ids, labels, strict=True)]


class OddTrainer(Trainer):
    def training_step(self, model, inputs, *rest):
        if BUG == "eval in the step":
            model.eval()
            with self.compute_loss_context_manager():
                loss = self.compute_loss(model, inputs)
            self.accelerator.backward(loss)
            return loss.detach()
        loss = super().training_step(model, inputs, *rest)
        if BUG == "clears in the step":
            model.zero_grad()
        return loss

    def create_optimizer(self, *rest):
        if BUG == "other model":
            self.optimizer = torch.optim.AdamW(BertForSequenceClassification(config).parameters(), lr=1e-3)
            return self.optimizer
        return super().create_optimizer(*rest)


with tempfile.TemporaryDirectory() as folder:
    arguments = TrainingArguments(
        folder,
        num_train_epochs=2,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=2,
        learning_rate=1e-3,
        warmup_steps=2,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        logging_steps=4,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer = OddTrainer(model=model, args=arguments, train_dataset=rows(136), eval_dataset=rows(32))
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    print(trainer.evaluate()["eval_loss"])
print(sum(p.double().sum().item() for p in model.parameters()))
