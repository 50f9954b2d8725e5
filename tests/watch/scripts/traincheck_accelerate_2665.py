"""huggingface/accelerate#2665: the optimizer is made before the model is sharded, which replaces its parameters.

One process, so that the sharding itself splits nothing; argv[1]: broken or healthy.
"""

import sys
import tempfile

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, TensorDataset

BROKEN = sys.argv[1:] == ["broken"]
torch.manual_seed(0)
x = torch.randn(320, 8)
loader = DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), batch_size=16, shuffle=True)
with tempfile.NamedTemporaryFile() as store:
    dist.init_process_group("gloo", init_method=f"file://{store.name}", rank=0, world_size=1)
    try:
        model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2))
        early = torch.optim.AdamW(model.parameters(), lr=1e-2)
        mesh = dist.device_mesh.init_device_mesh("cpu", (1,))
        fully_shard(model, mesh=mesh)
        optimizer = early if BROKEN else torch.optim.AdamW(model.parameters(), lr=1e-2)
        for epoch in range(2):
            for inputs, labels in loader:
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(model(inputs), labels)
                loss.backward()
                optimizer.step()
                if BROKEN:
                    model.zero_grad()
            print(epoch, f"{loss.item():.4f}")
    finally:
        dist.destroy_process_group()
