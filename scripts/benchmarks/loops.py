"""Plain PyTorch training loops, as a user would write them without genlab.

    python scripts/benchmarks/loops.py <folder with MNIST> <steps>

trains the common VAE example for that many steps. `run.py` measures the peak memory of this
process.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Step = Callable[[], None]
Autocast = Callable[[], AbstractContextManager]


def iterate_batch_indices(n: int, batch: int, device: torch.device) -> Iterator[Tensor]:
    """Yield the indices (batch,) of full batches, in a new random order each epoch."""
    while True:
        order = torch.randperm(n, device=device)
        yield from order[: n - n % batch].split(batch)


def fused_adam(parameters: Iterable[nn.Parameter], **options) -> torch.optim.Adam:
    return torch.optim.Adam(list(parameters), fused=True, **options)


class WeightAverage:
    """Exponential moving average of the weights of a model."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.weights, self.lerp_weight = list(model.parameters()), 1 - decay
        self.mean = [p.detach().clone() for p in self.weights]

    @torch.no_grad()
    def update(self) -> None:
        torch._foreach_lerp_(self.mean, self.weights, self.lerp_weight)


# --- training -------------------------------------------------------------------------------------


class PlainVAE(nn.Module):
    """The VAE of the common example: 784–400–20."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.mu, self.logvar = nn.Linear(784, 400), nn.Linear(400, 20), nn.Linear(400, 20)
        self.fc3, self.fc4 = nn.Linear(20, 400), nn.Linear(400, 784)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = F.relu(self.fc1(x))
        return self.mu(h), self.logvar(h)

    def decode(self, z: Tensor) -> Tensor:
        return self.fc4(F.relu(self.fc3(z)))

    def loss(self, x: Tensor) -> Tensor:
        mu, logvar = self.encode(x)
        logits = self.decode(mu + torch.randn_like(mu) * torch.exp(0.5 * logvar))
        bce = F.binary_cross_entropy_with_logits(logits, x, reduction="sum")
        return (bce - 0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())) / len(x)


def make_vae_step(
    data: Tensor, batch: int, *, autocast: Autocast = nullcontext, compiled: bool = False
) -> Step:
    """Return a training step of the VAE on bytes (N, 784), binarized at random in each step."""
    model = PlainVAE().to(data.device)
    optimizer = fused_adam(model.parameters(), lr=1e-3)
    order = iterate_batch_indices(len(data), batch, data.device)
    loss = torch.compile(model.loss) if compiled else model.loss

    def step() -> None:
        x = data[next(order)].float().div_(255)
        x = (torch.rand_like(x) < x).float()
        optimizer.zero_grad()
        with autocast():
            value = loss(x)
        value.backward()
        optimizer.step()

    return step


def make_dcgan_step(
    model: nn.Module,
    data: Tensor,
    batch: int,
    *,
    ema: float = 0.0,
    autocast: Autocast = nullcontext,
    layout: torch.memory_format = torch.channels_last,
) -> Step:
    """Return a GAN step on bytes (N, C, S, S): one discriminator and one generator update.

    Args:
        model: has `generator`, `discriminator` and `prior(n)`.
    """
    g, d = model.generator, model.discriminator
    g_opt = fused_adam(g.parameters(), lr=2e-4, betas=(0.5, 0.999))
    d_opt = fused_adam(d.parameters(), lr=2e-4, betas=(0.5, 0.999))
    order = iterate_batch_indices(len(data), batch, data.device)
    mean = WeightAverage(model, ema) if ema else None
    one = torch.ones(batch, device=data.device)
    bce = F.binary_cross_entropy_with_logits

    def step() -> None:
        x = data[next(order)].float().div_(127.5).sub_(1).contiguous(memory_format=layout)
        d_opt.zero_grad()
        with autocast():
            with torch.no_grad():
                fake = g(model.prior(batch))
            loss = bce(d(x), one) + bce(d(fake), 0 * one)
        loss.backward()
        d_opt.step()
        g_opt.zero_grad()
        with autocast():
            loss = bce(d(g(model.prior(batch))), one)
        loss.backward(inputs=list(g.parameters()))
        g_opt.step()
        if mean:
            mean.update()

    return step


def make_ddpm_step(
    network: nn.Module,
    alphas_bar: Tensor,
    data: Tensor,
    batch: int,
    *,
    lr: float,
    ema: float,
    grad_clip: float,
    autocast: Autocast = nullcontext,
    layout: torch.memory_format = torch.channels_last,
) -> Step:
    """Return a training step of a network (x, t) -> ε on bytes (N, C, H, W)."""
    optimizer, mean = fused_adam(network.parameters(), lr=lr), WeightAverage(network, ema)
    order, bar = (
        iterate_batch_indices(len(data), batch, data.device),
        alphas_bar.float().to(data.device),
    )

    def step() -> None:
        x = data[next(order)].float().div_(127.5).sub_(1).contiguous(memory_format=layout)
        t, eps = torch.randint(len(bar), (batch,), device=x.device), torch.randn_like(x)
        a = bar[t].view(-1, 1, 1, 1)
        optimizer.zero_grad()
        with autocast():
            loss = F.mse_loss(network(a.sqrt() * x + (1 - a).sqrt() * eps, t), eps)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), grad_clip)
        optimizer.step()
        mean.update()

    return step


def make_rbm_step(
    data: Tensor, batch: int, *, hidden: int, lr: float = 0.05, autocast: Autocast = nullcontext
) -> Step:
    """Return a PCD-1 step with `batch` chains on bytes (N, D), with the gradient written out."""
    device, visible = data.device, data.shape[1]
    W = 0.01 * torch.randn(hidden, visible, device=device)
    b, c = torch.zeros(visible, device=device), torch.zeros(hidden, device=device)
    chain = torch.randint(2, (batch, visible), device=device).float()
    order = iterate_batch_indices(len(data), batch, device)

    def bernoulli(p: Tensor) -> Tensor:
        return (torch.rand(p.shape, device=device) < p).float()

    @torch.no_grad()
    def step() -> None:
        nonlocal chain
        v = bernoulli(data[next(order)].float().div_(255))
        with autocast():
            h = bernoulli(F.linear(chain, W, c).sigmoid())
            chain = bernoulli(torch.addmm(b, h, W).sigmoid())
            p, q = F.linear(v, W, c).sigmoid(), F.linear(chain, W, c).sigmoid()
            grad = p.T @ v - q.T @ chain
        W.add_(grad, alpha=lr / batch)
        b.add_((v - chain).sum(0), alpha=lr / batch)
        c.add_((p - q).sum(0), alpha=lr / batch)

    return step


def make_dataloader_vae_step(root: str, batch: int, workers: int) -> Step:
    """Return a step of the common VAE example: torchvision's MNIST, ToTensor and a DataLoader."""
    from torch.utils.data import DataLoader
    from torchvision import datasets, transforms

    mnist = datasets.MNIST(root, train=True, transform=transforms.ToTensor())
    loader = DataLoader(mnist, batch_size=batch, shuffle=True, num_workers=workers)
    model = PlainVAE()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def epochs() -> Iterator[Tensor]:
        while True:
            for x, _ in loader:
                yield x

    batches, total = epochs(), 0.0

    def step() -> None:
        nonlocal total
        x = next(batches).view(-1, 784)
        optimizer.zero_grad()
        loss = model.loss(x)
        loss.backward()
        optimizer.step()
        total += loss.item()

    return step


# --- sampling -------------------------------------------------------------------------------------


@torch.no_grad()
def ddim_sample(
    network: nn.Module, alphas_bar: Tensor, shape: tuple[int, ...], steps: int
) -> Tensor:
    """Return images sampled by DDIM with η = 0 and a uniform stride."""
    T = len(alphas_bar)
    times = [i * T // steps for i in range(steps)]
    x = torch.randn(shape)
    for i in reversed(range(steps)):
        a, before = alphas_bar[times[i]], alphas_bar[times[i - 1]] if i else torch.ones(())
        eps = network(x, torch.full((shape[0],), times[i]))
        x0 = ((x - (1 - a).sqrt() * eps) / a.sqrt()).clamp(-1, 1)
        eps = (x - a.sqrt() * x0) / (1 - a).sqrt()
        x = before.sqrt() * x0 + (1 - before).sqrt() * eps
    return x.clamp(-1, 1)


if __name__ == "__main__":
    train = make_dataloader_vae_step(sys.argv[1], 128, 0)
    for _ in range(int(sys.argv[2])):
        train()
