"""LoRA by peft, trained with accelerate, accumulation and a warm-up; argv[1] is a mistake."""

import sys

import torch
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model
from torch.utils.data import DataLoader
from transformers import GPT2Config, GPT2LMHeadModel, get_linear_schedule_with_warmup

BUG = sys.argv[1] if len(sys.argv) > 1 else ""
torch.manual_seed(0)
base = GPT2LMHeadModel(GPT2Config(vocab_size=32, n_positions=16, n_embd=32, n_layer=2, n_head=2))
model = get_peft_model(base, LoraConfig(r=4, target_modules=["c_attn"], fan_in_fan_out=True))
ids = torch.arange(160 * 12).view(160, 12) % 31
loader = DataLoader([{"input_ids": row, "labels": row} for row in ids], batch_size=8, shuffle=True)
accelerator = Accelerator(gradient_accumulation_steps=2, cpu=True)
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
schedule = get_linear_schedule_with_warmup(optimizer, 2, 30)
if BUG == "unprepared":
    model, loader = accelerator.prepare(model, loader)
else:
    model, optimizer, loader, schedule = accelerator.prepare(model, optimizer, loader, schedule)
for epoch in range(3):
    model.train()
    for batch in loader:
        with accelerator.accumulate(model):
            loss = model(**batch).loss
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            if BUG == "clears first":
                optimizer.zero_grad()
            optimizer.step()
            schedule.step()
            if BUG != "not cleared":
                optimizer.zero_grad()
    print(epoch, f"{loss.item():.6f}")
