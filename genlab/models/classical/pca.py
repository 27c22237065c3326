"""Probabilistic PCA: Tipping & Bishop 1999, https://doi.org/10.1111/1467-9868.00196."""

from __future__ import annotations

import torch
from torch import Tensor

from genlab.errors import UserError
from genlab.models.classical.class_conditional import Density, refuse
from genlab.models.classical.covariance import LowRank, frozen
from genlab.models.classical.full_batch import Items, array
from genlab.spec import Positive, Spec

MORE = 5  # times as many items as components in a batch of the incremental fit


class PCA(Density):
    """x = W z + μ + σ ε with z ~ N(0, I): p(x) = N(μ, W Wᵀ + σ² I), whose W spans the principal subspace.

    Args:
        latent: q, the number of components.
        conditional: one such density a class.

    Raises:
        UserError: the data has no density or not more values than components.
    """

    def __init__(self, spec: Spec, *, latent: Positive = 30, conditional: bool = False) -> None:
        refuse("pca", spec, conditional=conditional, density=True)
        if latent >= spec.dim:
            raise UserError(
                f"model.latent={latent} must be below the {spec.dim} values of an item: the rest is noise"
            )
        super().__init__(spec, conditional=conditional)
        self.latent = latent
        self.mean = frozen(self.groups, spec.dim)  # μ
        self.covariance = LowRank(self.groups, spec.dim, rank=latent)

    @torch.no_grad()
    def improve(self, items: Items, *, step: int, seed: int) -> dict[str, Tensor]:
        """Fit each class (one pass is all that it takes); return the mean −log p of the fit, in nats a sample."""
        counts = [self.fit_group(items, g, seed) for g in range(self.groups)]
        self.share.copy_(torch.tensor(counts) / sum(counts))
        total = sum(
            self.log_prob(x, y if self.conditional else None).double().sum() for x, y in items
        )
        return {"loss": -total / sum(counts)}

    # Equations 7 and 8: U and Λ from the sample covariance (with 1/N), σ² the mean of the eigenvalues that are left out.
    def fit_group(self, items: Items, g: int, seed: int) -> int:
        """Fit group g by scikit-learn's PCA, or by its incremental form where the items stream; return its number of items."""
        group = g if self.conditional else None
        if items.whole:
            from sklearn.decomposition import PCA as Exact

            x = array(torch.cat(list(items.of(group))))
            self.refuse_few(len(x), group)
            fitted, n = Exact(self.latent, svd_solver="covariance_eigh").fit(x), len(x)
            total = x.var(0, ddof=1).sum()
        else:
            from sklearn.decomposition import IncrementalPCA

            fitted, n = IncrementalPCA(self.latent), 0
            for x in items.of(group, at_least=MORE * self.latent):
                n += len(x)
                self.refuse_few(n, group)
                fitted.partial_fit(array(x))
            total = fitted.var_.sum() * n / (n - 1)
        spread = torch.from_numpy(fitted.explained_variance_)
        noise = (total - spread.sum()) / (self.spec.dim - self.latent)
        most_likely = (n - 1) / n  # scikit-learn divides by N − 1
        self.mean[g] = torch.from_numpy(fitted.mean_).to(self.mean)
        self.covariance.take(
            torch.from_numpy(fitted.components_), spread * most_likely, noise * most_likely, g
        )
        return n

    def refuse_few(self, n: int, group: int | None) -> None:
        if n <= self.latent + 1:
            where = "the training split" if group is None else f"class {group}"
            raise UserError(
                f"{where} has {n} items, too few for {self.latent} components; set a smaller model.latent"
            )

    # --- abilities --------------------------------------------------------------------------------------------------

    def log_density(self, x: Tensor, group: int) -> Tensor:
        """Return log N(x; μ, W Wᵀ + σ² I) (B,) in nats of flat x (B, D)."""
        return self.covariance.log_prob(x - self.mean[group], group)

    def draw(self, n: int, group: int) -> Tensor:
        """Draw n flat items (n, D)."""
        return self.mean[group] + self.covariance.sample(n, group)

    # Section 3.3: the posterior's mean is drawn toward 0; the z whose W z + μ is nearest to x is (WᵀW)⁻¹ Wᵀ (x − μ).
    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """Return the code z (B, q), of unit variance, whose `decode` is x's projection; of a conditional model in x's class.

        The class is the most probable one given x, and its number stands behind the code: z (B, q + 1).
        """
        x = x.flatten(1)
        groups = self.group_of(x)
        project = lambda where, g: (
            (x[where] - self.mean[g]) @ self.covariance.axes[g].T / self.covariance.scale[g]
        )  # noqa: E731
        z = self.each(groups, x.new_empty(len(x), self.latent), project)
        return torch.cat([z, groups[:, None].to(z)], 1) if self.conditional else z

    def decode(self, z: Tensor) -> Tensor:
        """Return W z + μ (B, *shape) of codes as `encode` gives them; an image's values are not cut to its range."""
        groups = (
            z[:, -1].round().long()
            if self.conditional
            else torch.zeros(len(z), dtype=torch.long, device=z.device)
        )
        z = z[:, : self.latent]
        back = lambda where, g: (
            (z[where] * self.covariance.scale[g]) @ self.covariance.axes[g] + self.mean[g]
        )  # noqa: E731
        return self.each(groups, z.new_empty(len(z), self.spec.dim), back).unflatten(
            1, self.spec.shape
        )

    def prior(self, n: int) -> Tensor:
        """Draw n codes from N(0, I), of classes drawn by their shares where there are classes."""
        z = torch.randn(n, self.latent, dtype=self.mean.dtype, device=self.mean.device)
        if not self.conditional:
            return z
        return torch.cat([z, torch.multinomial(self.share, n, replacement=True)[:, None].to(z)], 1)

    def group_of(self, x: Tensor) -> Tensor:
        """Return the most probable class (B,) of flat x (B, D)."""
        return torch.stack(
            [p.log() + self.log_density(x, g) for g, p in enumerate(self.share)], 1
        ).argmax(1)
