"""The loops by hand that genlab is measured against: plain PyTorch, as a user would write them, with nothing of genlab.

    python scripts/bench_loops.py <folder with MNIST> <steps>

trains the usual VAE example for so many steps: the process whose peak memory `bench.py` measures.
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


def picks(n: int, batch: int, device: torch.device) -> Iterator[Tensor]:
    """Yield the indices (batch,) of whole batches, in a new order each epoch."""
    while True:
        order = torch.randperm(n, device=device)
        yield from order[: n - n % batch].split(batch)


def adam(parameters: Iterable[nn.Parameter], **how) -> torch.optim.Adam:
    return torch.optim.Adam(list(parameters), fused=True, **how)


class Mean:
    """A running mean of weights."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.weights, self.share = list(model.parameters()), 1 - decay
        self.mean = [p.detach().clone() for p in self.weights]

    @torch.no_grad()
    def update(self) -> None:
        torch._foreach_lerp_(self.mean, self.weights, self.share)


# --- training ---------------------------------------------------------------------------------------------------------


class HandVAE(nn.Module):
    """The usual VAE example: 784–400–20."""

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


def vae(
    data: Tensor, batch: int, *, autocast: Autocast = nullcontext, compiled: bool = False
) -> Step:
    """Return one step of the VAE on bytes (N, 784), binarised anew each time."""
    model = HandVAE().to(data.device)
    optimizer, order = adam(model.parameters(), lr=1e-3), picks(len(data), batch, data.device)
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


def dcgan(
    model: nn.Module, data: Tensor, batch: int, *, ema: float = 0.0, autocast: Autocast = nullcontext,
    layout: torch.memory_format = torch.channels_last,
) -> Step:  # fmt: skip
    """Return one step of each player of `model` (its generator, discriminator and prior) on bytes (N, C, S, S)."""
    g, d = model.generator, model.discriminator
    g_opt = adam(g.parameters(), lr=2e-4, betas=(0.5, 0.999))
    d_opt = adam(d.parameters(), lr=2e-4, betas=(0.5, 0.999))
    order, mean = picks(len(data), batch, data.device), Mean(model, ema) if ema else None
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


def ddpm(
    network: nn.Module, alphas_bar: Tensor, data: Tensor, batch: int, *, lr: float, ema: float, clip: float,
    autocast: Autocast = nullcontext, layout: torch.memory_format = torch.channels_last,
) -> Step:  # fmt: skip
    """Return one step of a network (x, t) -> ε on bytes (N, C, H, W)."""
    optimizer, mean = adam(network.parameters(), lr=lr), Mean(network, ema)
    order, bar = picks(len(data), batch, data.device), alphas_bar.float().to(data.device)

    def step() -> None:
        x = data[next(order)].float().div_(127.5).sub_(1).contiguous(memory_format=layout)
        t, eps = torch.randint(len(bar), (batch,), device=x.device), torch.randn_like(x)
        a = bar[t].view(-1, 1, 1, 1)
        optimizer.zero_grad()
        with autocast():
            loss = F.mse_loss(network(a.sqrt() * x + (1 - a).sqrt() * eps, t), eps)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), clip)
        optimizer.step()
        mean.update()

    return step


def rbm(
    data: Tensor, batch: int, *, hidden: int, lr: float = 0.05, autocast: Autocast = nullcontext
) -> Step:
    """Return one step of PCD-1 with `batch` chains on bytes (N, D), the gradient written out."""
    device, visible = data.device, data.shape[1]
    W = 0.01 * torch.randn(hidden, visible, device=device)
    b, c = torch.zeros(visible, device=device), torch.zeros(hidden, device=device)
    chain = torch.randint(2, (batch, visible), device=device).float()
    order = picks(len(data), batch, device)

    def flip(p: Tensor) -> Tensor:
        return (torch.rand(p.shape, device=device) < p).float()

    @torch.no_grad()
    def step() -> None:
        nonlocal chain
        v = flip(data[next(order)].float().div_(255))
        with autocast():
            h = flip(F.linear(chain, W, c).sigmoid())
            chain = flip(torch.addmm(b, h, W).sigmoid())
            p, q = F.linear(v, W, c).sigmoid(), F.linear(chain, W, c).sigmoid()
            grad = p.T @ v - q.T @ chain
        W.add_(grad, alpha=lr / batch)
        b.add_((v - chain).sum(0), alpha=lr / batch)
        c.add_((p - q).sum(0), alpha=lr / batch)

    return step


def usual(root: str, batch: int, workers: int) -> Step:
    """Return one step of the usual VAE example: torchvision's MNIST, ToTensor, and a DataLoader with so many workers."""
    from torch.utils.data import DataLoader
    from torchvision import datasets, transforms

    mnist = datasets.MNIST(root, train=True, transform=transforms.ToTensor())
    loader = DataLoader(mnist, batch_size=batch, shuffle=True, num_workers=workers)
    model = HandVAE()
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


# --- sampling ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def ddim(network: nn.Module, alphas_bar: Tensor, shape: tuple[int, ...], steps: int) -> Tensor:
    """Return images of DDIM with η = 0 and a uniform stride."""
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
    train = usual(sys.argv[1], 128, 0)
    for _ in range(int(sys.argv[2])):
        train()
