"""Healthy generative models, written by hand."""

from __future__ import annotations

import math

import torch
from groups import adamw
from hand_vision import coloured, loader
from torch import nn
from torch.nn import functional

from debugkit import Target

SAMPLES, WIDTH, LATENT = 192, 32, 4

Batch = tuple[torch.Tensor, ...]


def moons(samples: int = 256) -> torch.Tensor:
    """Points ``[n, 2]`` on two half circles, normalised."""
    generator = torch.Generator().manual_seed(8)
    angles = math.pi * torch.rand((samples,), generator=generator)
    side = (torch.arange(samples) % 2).float()
    points = torch.stack([angles.cos() + side, (1 - 2 * side) * angles.sin() + side / 2], 1)
    points = points + 0.05 * torch.randn(points.shape, generator=generator)
    return (points - points.mean(0)) / points.std(0)


def factors(width: int = 24) -> torch.Tensor:
    """Rows ``[n, width]`` about N(0, 1) that lie near a plane of four dimensions."""
    generator = torch.Generator().manual_seed(9)
    hidden = torch.randn((SAMPLES, LATENT), generator=generator)
    rows = hidden @ torch.randn((LATENT, width), generator=generator)
    rows = rows + 0.1 * torch.randn(rows.shape, generator=generator)
    return (rows - rows.mean(0)) / rows.std(0)


def _mlp(inside: int, outside: int, width: int = WIDTH) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inside, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, outside)
    )


class _VAE(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = _mlp(24, 2 * LATENT), _mlp(LATENT, 24)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        mean, log_variance = self.encoder(x).chunk(2, -1)
        hidden = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        return self.decoder(hidden), mean, log_variance


def vae() -> Target:
    """A variational autoencoder with its ELBO."""
    model = _VAE()

    def step(model: nn.Module, batch: Batch) -> torch.Tensor:
        (x,) = batch
        found, mean, log_variance = model(x)
        kl = -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum(-1).mean()
        return functional.mse_loss(found, x, reduction="none").sum(-1).mean() + 0.1 * kl  # type: ignore[no-any-return]

    return Target(model, loader(factors()), training_step=step, optimizer=adamw(model))


def autoencoder() -> Target:
    """An autoencoder whose loader gives each row twice."""
    rows = factors()
    model = nn.Sequential(_mlp(24, LATENT), _mlp(LATENT, 24))
    return Target(model, loader(rows, rows.clone()), nn.MSELoss(), optimizer=adamw(model))


def gan_generator() -> Target:
    """The generator's step of a GAN; the discriminator is another model with another optimizer."""
    torch.manual_seed(10)
    model, critic = _mlp(LATENT, 2), _mlp(2, 1).requires_grad_(False)

    def step(model: nn.Module, batch: Batch) -> torch.Tensor:
        (real,) = batch
        noise = torch.randn(len(real), LATENT, device=real.device)
        return functional.softplus(-critic(model(noise))).mean()

    optimizer = torch.optim.Adam(model.parameters(), lr=2e-4, betas=(0.5, 0.999))
    return Target(model, loader(moons()), training_step=step, optimizer=optimizer)


def gan_critic() -> Target:
    """The discriminator's step of a GAN, on true points and on a fixed generator's."""
    torch.manual_seed(11)
    model, generator = _mlp(2, 1), _mlp(LATENT, 2).requires_grad_(False)

    def step(model: nn.Module, batch: Batch) -> torch.Tensor:
        (real,) = batch
        fake = generator(torch.randn(len(real), LATENT, device=real.device))
        return functional.softplus(-model(real)).mean() + functional.softplus(model(fake)).mean()

    optimizer = torch.optim.Adam(model.parameters(), lr=2e-4, betas=(0.5, 0.999))
    return Target(model, loader(moons()), training_step=step, optimizer=optimizer)


class _Coupling(nn.Module):
    def __init__(self, flipped: bool) -> None:
        super().__init__()
        self.flipped = flipped
        self.inner = _mlp(1, 2)
        nn.init.zeros_(self.inner[-1].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.inner[-1].bias)  # type: ignore[arg-type]

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        kept, moved = x.flip(1).chunk(2, 1) if self.flipped else x.chunk(2, 1)
        scale, shift = self.inner(kept).chunk(2, 1)
        scale = scale.tanh()
        out = torch.cat([kept, moved * scale.exp() + shift], 1)
        return (out.flip(1) if self.flipped else out), scale.sum(1)


class _Flow(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Coupling(flipped=index % 2 == 1) for index in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The negative log-likelihood of each point."""
        total = torch.zeros(len(x), device=x.device)
        for layer in self.layers:
            x, volume = layer(x)
            total = total + volume
        return 0.5 * (x**2 + math.log(2 * math.pi)).sum(1) - total


def flow() -> Target:
    """A normalising flow whose last layers start at 0, trained on its likelihood."""
    model = _Flow()

    def step(model: nn.Module, batch: Batch) -> torch.Tensor:
        return model(batch[0]).mean()  # type: ignore[no-any-return]

    return Target(model, loader(moons()), training_step=step, optimizer=adamw(model))


class _Denoiser(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(1, width), nn.SiLU(), nn.Linear(width, width))
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.middle = nn.Sequential(nn.GroupNorm(4, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1))
        self.last = nn.Sequential(nn.GroupNorm(4, width), nn.SiLU(), nn.Conv2d(width, 3, 3, padding=1))
        nn.init.zeros_(self.last[-1].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.last[-1].bias)  # type: ignore[arg-type]

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        states = self.first(x) + self.time(time)[:, :, None, None]
        return self.last(states + self.middle(states))  # type: ignore[no-any-return]


def diffusion() -> Target:
    """A diffusion model that predicts the noise; its last layer starts at 0."""
    model = _Denoiser()
    images, _ = coloured(side=8)

    def step(model: nn.Module, batch: Batch) -> torch.Tensor:
        (clean,) = batch
        time = torch.rand(len(clean), 1, device=clean.device)
        kept = (0.5 * math.pi * time).cos()[:, :, None, None]
        noise = torch.randn_like(clean)
        return functional.mse_loss(model(kept * clean + (1 - kept**2).sqrt() * noise, time), noise)

    return Target(model, loader(images), training_step=step, optimizer=adamw(model))


class _WaveNet(nn.Module):
    def __init__(self, levels: int = 16, width: int = 16) -> None:
        super().__init__()
        self.embedding = nn.Embedding(levels, width)
        self.layers = nn.ModuleList(nn.Conv1d(width, 2 * width, 2, dilation=2**step) for step in range(4))
        self.score = nn.Conv1d(width, levels, 1)

    def forward(self, levels: torch.Tensor) -> torch.Tensor:
        states = self.embedding(levels).transpose(1, 2)
        for layer in self.layers:
            padded = functional.pad(states, (layer.dilation[0], 0))  # type: ignore[index, arg-type]
            states = states + functional.glu(layer(padded), 1)
        return self.score(states)  # type: ignore[no-any-return]


def wavenet() -> Target:
    """Causal convolutions that predict the next level of a sine wave."""
    generator = torch.Generator().manual_seed(12)
    phase = torch.rand((SAMPLES, 1), generator=generator)
    speed = 0.03 + 0.05 * torch.rand((SAMPLES, 1), generator=generator)
    wave = (2 * math.pi * (speed * torch.arange(33) + phase)).sin()
    levels = ((wave + 1) * 7.5).round().long()
    model = _WaveNet()
    pairs = loader(levels[:, :-1].contiguous(), levels[:, 1:].contiguous())
    return Target(model, pairs, nn.CrossEntropyLoss(), optimizer=adamw(model))


MODELS = {
    "vae": vae,
    "autoencoder": autoencoder,
    "gan-generator": gan_generator,
    "gan-critic": gan_critic,
    "flow": flow,
    "diffusion": diffusion,
    "wavenet": wavenet,
}
