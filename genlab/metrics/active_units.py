"""How much of its code a model uses: the KL of each dimension, and which dimensions change with the data at all."""

from __future__ import annotations

import torch
from torch import Tensor

from genlab.metrics import Row
from genlab.metrics.context import Subject

ACTIVE = 0.01  # variance above which a dimension's mean changes with the data (Burda et al. 2016, section 5.2)


def rows(subject: Subject) -> list[str]:
    """Return the names of the rows that `measure` gives."""
    return ["kl", "active_units"] if "posterior" in subject.abilities else []


@torch.no_grad()
def measure(subject: Subject) -> list[Row]:
    """Return the mean over n held-out items of KL(q(z|x) ‖ N(0, I)), its parts by dimension, and the number of active units.

    A unit u is active if A_u = Cov_x(E_q(u|x)[u]) > 0.01: Burda et al. 2016, https://arxiv.org/abs/1509.00519, section 5.2.
    Where none is, the posterior has collapsed onto the prior (Bowman et al. 2016, https://arxiv.org/abs/1511.06349, section 3.1).
    """
    s = subject.settings
    batch = subject.dataset.take(s.split, s.n, seed=s.seed, device=subject.device)
    x = batch.x.to(next(subject.model.parameters()).dtype)
    y = batch.y.split(s.batch_size) if batch.y is not None else [None] * len(x)
    found = [subject.model.posterior(*part) for part in zip(x.split(s.batch_size), y, strict=False)]
    mean, log_var = (torch.cat(part).double() for part in zip(*found, strict=True))  # (n, latent)
    kl = 0.5 * (mean.square() + log_var.exp() - 1 - log_var)
    said = {"n": len(x), "split": s.split, "seed": s.seed}
    parts = {f"kl/{j}": value for j, value in enumerate(kl.mean(0).tolist())}
    error = kl.sum(1).std().item() / len(x) ** 0.5
    active, latent = int(is_active(mean).sum()), mean.shape[1]
    return [
        Row(
            "kl",
            kl.sum(1).mean().item(),
            "nats",
            "exact",
            error,
            better="neither",
            conditions=said,
            parts=parts,
        ),
        Row(
            "active_units",
            active,
            f"of {latent}",
            better="neither",
            conditions=said,
            note=collapse(active, latent),
        ),
    ]


def is_active(mean: Tensor) -> Tensor:
    """Return whether each dimension (latent,) of posterior means (n, latent) varies over the items."""
    return mean.var(0) > ACTIVE


def collapse(active: int, latent: int) -> str:
    """Return what is to be said of a posterior that is the prior whatever the item; nothing of another."""
    if active:
        return ""
    return (
        f"posterior collapse: none of the {latent} code dimensions is active, so that the code says nothing of the item; "
        "trainer.kl_warmup, model.free_bits or a smaller model.beta may mend it"
    )
