"""huggingface/transformers#34204: a processor puts the texts of a batch into one row, and its images into many.

The images of a batch are one list, which the processor takes for the images of a single text. argv[1]: broken or
healthy.
"""

import sys

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

BROKEN = sys.argv[1:] == ["broken"]
torch.manual_seed(0)


def process(texts, images):
    """Token ids and pixel values of texts with one image each."""
    pixels = torch.stack(images)
    if BROKEN:
        return {"input_ids": torch.cat(texts)[None, :12], "pixel_values": pixels}
    return {"input_ids": torch.stack(texts), "pixel_values": pixels}


class Captioner(nn.Module):
    def __init__(self):
        super().__init__()
        self.vision = nn.Sequential(nn.Conv2d(1, 8, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 9, 32))
        self.embed, self.rnn, self.head = (
            nn.Embedding(20, 32),
            nn.GRU(32, 32, batch_first=True),
            nn.Linear(32, 20),
        )

    def forward(self, input_ids, pixel_values, labels=None):
        seen = self.vision(pixel_values)
        seen = seen if len(seen) == len(input_ids) else seen.mean(0, keepdim=True)
        hidden, _ = self.rnn(self.embed(input_ids), seen[None])
        logits = self.head(hidden)
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return {"loss": loss, "logits": logits}


def collate(rows):
    batch = process([row["text"] for row in rows], [row["image"] for row in rows])
    return {**batch, "labels": batch["input_ids"].clone()}


kinds = torch.arange(160) % 4
texts = (kinds[:, None] * 4 + torch.arange(12) % 4 + 2).clamp(max=19)
images = torch.rand(160, 1, 8, 8) * 0.2 + kinds[:, None, None, None] / 4
rows = [{"text": text, "image": image} for text, image in zip(texts, images, strict=True)]
loader = DataLoader(rows, batch_size=8, shuffle=True, collate_fn=collate)
model = Captioner()
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
for epoch in range(2):
    for batch in loader:
        loss = model(**batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(epoch, f"{loss.item():.4f}")
