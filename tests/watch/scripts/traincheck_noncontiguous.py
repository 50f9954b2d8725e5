"""elanapearl.github.io, on Apple's GPUs: in-place operations on non-contiguous tensors wrote to a copy.

The encoder of a sparse autoencoder begins as the transpose of its decoder, so it never moved. The optimizer here
does the same anywhere. argv[1]: broken or healthy.
"""

import sys

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

BROKEN = sys.argv[1:] == ["broken"]
torch.manual_seed(0)


class Adam(torch.optim.Optimizer):
    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state.update(step=0, m=torch.zeros_like(p), v=torch.zeros_like(p))
                state["step"] += 1
                m = state["m"].mul_(0.9).add_(p.grad, alpha=0.1)
                v = state["v"].mul_(0.999).addcmul_(p.grad, p.grad, value=0.001)
                m, v = m / (1 - 0.9 ** state["step"]), v / (1 - 0.999 ** state["step"])
                written = p.contiguous() if BROKEN else p
                written.addcdiv_(m, v.sqrt().add_(1e-8), value=-group["lr"])


class Autoencoder(nn.Module):
    def __init__(self, width, features):
        super().__init__()
        self.decoder = nn.Parameter(nn.functional.normalize(torch.randn(features, width), dim=1))
        self.encoder = nn.Parameter(self.decoder.data.clone().t())
        self.encoder_bias, self.decoder_bias = (
            nn.Parameter(torch.zeros(features)),
            nn.Parameter(torch.zeros(width)),
        )

    def forward(self, x):
        codes = torch.relu((x - self.decoder_bias) @ self.encoder + self.encoder_bias)
        return codes @ self.decoder + self.decoder_bias, codes


data = torch.randn(480, 4) @ torch.randn(4, 16)
loader = DataLoader(TensorDataset(data), batch_size=32, shuffle=True)
model = Autoencoder(16, 48)
optimizer = Adam(model.parameters(), lr=1e-3)
for epoch in range(3):
    for (x,) in loader:
        optimizer.zero_grad()
        rebuilt, codes = model(x)
        loss = nn.functional.mse_loss(rebuilt, x) + 1e-3 * codes.abs().mean()
        loss.backward()
        optimizer.step()
    print(epoch, f"{loss.item():.4f}")
