"""Loops of libraries, as their users call them; argv[1] says which."""

import logging
import math
import sys
import tempfile
import warnings

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

KIND = sys.argv[1]
torch.manual_seed(42)
warnings.simplefilter("ignore")
WORDS = "zero good fine great nice bad poor awful sad film plot cast story end tale scene".split()  # noqa: SIM905


def sentences(count, seed=0):
    """Token ids from 4 to 19 with padding by 0, and whether the good words are more than the bad ones."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(count):
        length = int(torch.randint(6, 13, (1,), generator=generator))
        ids = torch.randint(4, 4 + len(WORDS), (length,), generator=generator)
        good, bad = ((ids > 4) & (ids < 9)).sum(), ((ids > 8) & (ids < 13)).sum()
        rows.append({"input_ids": ids.tolist(), "labels": int(good > bad)})
    return rows


def pad(rows):
    longest = max(len(row["input_ids"]) for row in rows)
    ids = [row["input_ids"] + [0] * (longest - len(row["input_ids"])) for row in rows]
    ids = torch.tensor(ids)
    return {
        "input_ids": ids,
        "attention_mask": (ids != 0).long(),
        "labels": torch.tensor([r["labels"] for r in rows]),
    }


def bert(**changes):
    from transformers import BertConfig, BertForSequenceClassification

    return BertForSequenceClassification(
        BertConfig(
            vocab_size=20,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=16,
            **changes,
        )
    )


def fine_tune(model, folder, **changes):
    from transformers import PrinterCallback, Trainer, TrainingArguments

    def compute_metrics(eval_pred):
        logits, labels = eval_pred
        return {"accuracy": float((np.argmax(logits, axis=-1) == labels).mean())}

    settings = {
        "learning_rate": 1e-3,
        "per_device_train_batch_size": 16,
        "per_device_eval_batch_size": 16,
        "num_train_epochs": 2,
        "weight_decay": 0.01,
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "load_best_model_at_end": True,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    trainer = Trainer(
        model=model,
        args=TrainingArguments(folder, **{**settings, **changes}),
        train_dataset=sentences(256),
        eval_dataset=sentences(64, seed=1),
        data_collator=pad,
        compute_metrics=compute_metrics,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    print(f"{trainer.evaluate()['eval_loss']:.6f}")


def trainer_sequence_classification():
    with tempfile.TemporaryDirectory() as folder:
        fine_tune(bert(), folder)


def trainer_lora():
    from peft import LoraConfig, TaskType, get_peft_model

    model = get_peft_model(
        bert(), LoraConfig(task_type=TaskType.SEQ_CLS, r=8, lora_alpha=16, lora_dropout=0.1)
    )
    with tempfile.TemporaryDirectory() as folder:
        fine_tune(model, folder, learning_rate=3e-3, label_names=["labels"])


def trainer_bf16_accumulation():
    with tempfile.TemporaryDirectory() as folder:
        fine_tune(
            bert(),
            folder,
            bf16=True,
            gradient_accumulation_steps=2,
            warmup_steps=4,
            lr_scheduler_type="cosine",
            label_smoothing_factor=0.1,
        )


def glue_no_trainer():
    """transformers' run_glue_no_trainer: accelerate, a linear schedule, an evaluation per epoch."""
    from accelerate import Accelerator
    from transformers import get_scheduler

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = bert()
    train_dataloader = DataLoader(sentences(256), shuffle=True, collate_fn=pad, batch_size=8)
    eval_dataloader = DataLoader(sentences(64, seed=1), collate_fn=pad, batch_size=8)
    no_decay = ["bias", "LayerNorm.weight"]
    grouped = [
        {
            "params": [p for n, p in model.named_parameters() if any(nd in n for nd in no_decay) is skip],
            "weight_decay": 0.0 if skip else 0.01,
        }
        for skip in (False, True)
    ]
    optimizer = torch.optim.AdamW(grouped, lr=1e-3)
    steps = 2 * math.ceil(len(train_dataloader) / 2)
    lr_scheduler = get_scheduler("linear", optimizer=optimizer, num_warmup_steps=2, num_training_steps=steps)
    model, optimizer, train_dataloader, eval_dataloader, lr_scheduler = accelerator.prepare(
        model, optimizer, train_dataloader, eval_dataloader, lr_scheduler
    )
    for epoch in range(2):
        model.train()
        total_loss = 0
        for batch in train_dataloader:
            with accelerator.accumulate(model):
                outputs = model(**batch)
                loss = outputs.loss
                total_loss += loss.detach().float()
                accelerator.backward(loss)
                optimizer.step()
                lr_scheduler.step()
                optimizer.zero_grad()
        model.eval()
        right = 0
        for batch in eval_dataloader:
            with torch.no_grad():
                outputs = model(**batch)
            predictions, references = accelerator.gather_for_metrics(
                (outputs.logits.argmax(dim=-1), batch["labels"])
            )
            right += (predictions == references).sum().item()
        print(epoch, f"{total_loss.item():.6f}", right)


def quiet_lightning(**changes):
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return {
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        **changes,
    }


def blobs(count=192, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 8, generator=generator)
    return TensorDataset(x, (x[:, :2].sum(1) > 0).long())


def lightning_module():
    import lightning as L

    class Classifier(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 2))

        def forward(self, x):
            return self.layers(x)

        def training_step(self, batch, batch_idx):
            x, y = batch
            loss = F.cross_entropy(self(x), y)
            self.log("train_loss", loss, prog_bar=True)
            return loss

        def validation_step(self, batch, batch_idx):
            x, y = batch
            logits = self(x)
            self.log_dict(
                {"val_loss": F.cross_entropy(logits, y), "val_acc": (logits.argmax(1) == y).float().mean()}
            )

        def configure_optimizers(self):
            optimizer = torch.optim.Adam(self.parameters(), lr=3e-3)
            schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=2)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "monitor": "val_loss"}}

    trainer = L.Trainer(max_epochs=3, **quiet_lightning(gradient_clip_val=1.0, accumulate_grad_batches=2))
    model = Classifier()
    train, val = DataLoader(blobs(), 16, shuffle=True), DataLoader(blobs(64, 1), 16)
    trainer.fit(model, train, val)
    print({name: round(value.item(), 6) for name, value in trainer.callback_metrics.items()})


def lightning_gan():
    import lightning as L

    class GAN(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False
            self.generator = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 8))
            self.discriminator = nn.Sequential(nn.Linear(8, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1))

        def training_step(self, batch, batch_idx):
            real, _ = batch
            g_opt, d_opt = self.optimizers()
            fake = self.generator(torch.randn(len(real), 4))
            d_x, d_z = self.discriminator(real), self.discriminator(fake.detach())
            err_d = F.binary_cross_entropy_with_logits(d_x, torch.ones_like(d_x))
            err_d = err_d + F.binary_cross_entropy_with_logits(d_z, torch.zeros_like(d_z))
            d_opt.zero_grad()
            self.manual_backward(err_d)
            d_opt.step()
            d_z = self.discriminator(fake)
            err_g = F.binary_cross_entropy_with_logits(d_z, torch.ones_like(d_z))
            g_opt.zero_grad()
            self.manual_backward(err_g)
            g_opt.step()
            self.log_dict({"g_loss": err_g, "d_loss": err_d}, prog_bar=True)

        def configure_optimizers(self):
            return [
                torch.optim.Adam(part.parameters(), 1e-3) for part in (self.generator, self.discriminator)
            ]

    trainer = L.Trainer(max_epochs=2, **quiet_lightning())
    trainer.fit(GAN(), DataLoader(blobs(), 16, shuffle=True))
    print({name: round(value.item(), 6) for name, value in trainer.callback_metrics.items()})


def fabric():
    import lightning as L

    quiet_lightning()
    fabric = L.Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
    fabric.launch()
    model = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    model, optimizer = fabric.setup(model, optimizer)
    loader = fabric.setup_dataloaders(DataLoader(blobs(), 16, shuffle=True))
    for epoch in range(2):
        model.train()
        for x, y in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            fabric.backward(loss)
            fabric.clip_gradients(model, optimizer, max_norm=1.0)
            optimizer.step()
        print(epoch, f"{loss.item():.6f}")


globals()[KIND]()
