"""The classical models against what is known exactly: the SVD, PyTorch's densities, scikit-learn's fits, sums over all items."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from helpers.recipes import SMALL, built
from sklearn.cluster import KMeans as Lloyd
from sklearn.mixture import GaussianMixture
from torch.distributions import Bernoulli, MultivariateNormal

from genlab.errors import UserError
from genlab.models.classical.bernoulli_mixture import BernoulliMixture
from genlab.models.classical.full_batch import Items
from genlab.models.classical.gmm import GMM
from genlab.models.classical.kmeans import KMeans, squared_distances
from genlab.models.classical.pca import PCA
from genlab.spec import Batch, Spec

POINTS = Spec((5,), kind="points", levels=0, classes=3)
BINARY = Spec((1, 2, 3), levels=2, range=(0.0, 1.0), classes=3)
FORMS = [
    {"covariance": "spherical"},
    {"covariance": "diagonal"},
    {"covariance": "full"},
    {"covariance": "low_rank", "rank": 2},
]
forms = pytest.mark.parametrize("form", FORMS, ids=lambda form: form["covariance"])


def blobs(n: int = 600) -> Batch:
    """Three classes of correlated points whose centres are some deviations apart."""
    torch.manual_seed(0)
    y = torch.arange(n) % 3
    mix = torch.randn(3, 5, 5).double()
    return Batch(
        torch.einsum("nij,nj->ni", mix[y], torch.randn(n, 5).double())
        + 3 * torch.randn(3, 5).double()[y],
        y,
    )


def bits(n: int = 500) -> Batch:
    torch.manual_seed(0)
    y = torch.arange(n) % 3
    return Batch(torch.bernoulli(torch.rand(3, 1, 2, 3).double()[y]), y)


def items(batch: Batch, *, whole: bool = True, size: int = 64) -> Items:
    cut = lambda i: Batch(batch.x[i : i + size], batch.y[i : i + size])  # noqa: E731
    return Items(lambda: (cut(i) for i in range(0, len(batch), size)), whole=whole)


def fitted(model, batch: Batch, steps: int = 1, *, whole: bool = True):
    """Return the model in float64 after some steps, and the losses of each."""
    model, over = model.double(), items(batch, whole=whole)
    return model, [model.improve(over, step=i, seed=i)["loss"].item() for i in range(steps)]


def exact(model: GMM | PCA, group: int = 0) -> MultivariateNormal:
    """PyTorch's density of the group's first Gaussian, its covariance written out."""
    i, covariance = group * getattr(model, "components", 1), model.covariance
    if hasattr(covariance, "triangle"):
        sigma = covariance.triangle[i] @ covariance.triangle[i].T
    elif hasattr(covariance, "axes"):
        w = covariance.axes[i].T * covariance.scale[i]
        sigma = w @ w.T + covariance.noise[i] * torch.eye(len(w)).double()
    else:
        sigma = covariance.variance[i].diag()
    return MultivariateNormal(model.mean[i], sigma)


# --- probabilistic PCA ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "streamed"])
def test_pca_spans_the_subspace_of_the_svd_and_its_density_is_the_gaussian_s(whole):
    batch = blobs()
    batch.x *= torch.tensor([9, 5, 1, 0.6, 0.5])  # a clear gap, which the incremental fit sees too
    model, (loss,) = fitted(PCA(POINTS, latent=2), batch, whole=whole)
    away = batch.x - batch.x.mean(0)
    _, s, vt = torch.linalg.svd(away, full_matrices=False)
    values = s.square() / len(away)
    tolerance = {"atol": 1e-9, "rtol": 1e-9} if whole else {"atol": 2e-2, "rtol": 2e-2}
    projector = model.covariance.axes[0].T @ model.covariance.axes[0]
    torch.testing.assert_close(projector, vt[:2].T @ vt[:2], **tolerance)
    torch.testing.assert_close(model.covariance.spread[0], values[:2], **tolerance)
    torch.testing.assert_close(
        model.covariance.noise[0], values[2:].mean(), **tolerance
    )  # Tipping & Bishop 1999, equation 8
    best = away - away @ projector
    torch.testing.assert_close(model.decode(model.encode(batch.x)), batch.x - best, **tolerance)
    torch.testing.assert_close(
        model.log_prob(batch.x), exact(model).log_prob(batch.x), atol=1e-9, rtol=0
    )
    assert loss == pytest.approx(-model.log_prob(batch.x).mean().item(), abs=1e-9)
    if whole:  # equation 3 with the optimum put in: L = −½ {D log 2π + log|C| + D}
        log_det = values[:2].log().sum() + 3 * values[2:].mean().log()
        assert loss == pytest.approx(
            0.5 * (5 * math.log(2 * math.pi) + log_det.item() + 5), abs=1e-9
        )


def test_pca_is_the_most_likely_of_its_kind():
    batch = blobs()
    model, (loss,) = fitted(PCA(POINTS, latent=2), batch)
    for name, parameter in model.covariance.named_parameters():
        for factor in (0.95, 1.05):
            before = parameter.clone()
            parameter.mul_(factor) if name != "axes" else parameter.copy_(parameter.roll(1, -1))
            assert -model.log_prob(batch.x).mean().item() > loss + 1e-4, name
            parameter.copy_(before)


# --- mixtures ---------------------------------------------------------------------------------------------------------


@forms
def test_gmm_s_density_is_that_of_its_gaussians(form):
    model, _ = fitted(GMM(POINTS, components=1, conditional=True, **form), blobs())
    x, y = blobs().x[:50], blobs().y[:50]
    each = torch.stack([exact(model, g).log_prob(x) for g in range(3)], 1)
    torch.testing.assert_close(
        model.log_prob(x, y), each.gather(1, y[:, None])[:, 0], atol=1e-9, rtol=0
    )
    torch.testing.assert_close(
        model.log_prob(x), (each - math.log(3)).logsumexp(1), atol=1e-9, rtol=0
    )
    torch.testing.assert_close(model.encode(x), (each - math.log(3)).softmax(1), atol=1e-12, rtol=0)


@forms
@pytest.mark.parametrize("whole", [True, False], ids=["whole", "streamed"])
def test_em_never_lowers_the_likelihood(form, whole):
    _, losses = fitted(GMM(POINTS, components=4, floor=0.0, **form), blobs(), 12, whole=whole)
    assert (
        all(b <= a + 1e-10 for a, b in itertools.pairwise(losses)) and losses[-1] < losses[0] - 1e-3
    )


@pytest.mark.parametrize("form", FORMS[:3], ids=lambda form: form["covariance"])
def test_gmm_is_scikit_learn_s_from_the_same_start(form):
    """The same k-means labels, the same floor, the same number of passes: the same likelihood of each item."""
    batch = blobs()
    model, _ = fitted(GMM(POINTS, components=4, **form), batch, 7)
    start = Lloyd(4, n_init=1, max_iter=20, random_state=0).fit(batch.x.numpy())
    r = np.eye(4)[start.labels_]
    kind = {"diagonal": "diag"}.get(form["covariance"], form["covariance"])
    theirs = GaussianMixture(4, covariance_type=kind, max_iter=7, tol=0.0, reg_covar=1e-6)
    theirs._initialize(
        batch.x.numpy(), r
    )  # the M-step for the labels, which its own k-means start makes
    theirs.converged_, theirs.lower_bound_, theirs.warm_start = False, -np.inf, True
    with pytest.warns(Warning, match="did not converge"):
        theirs.fit(batch.x.numpy())
    np.testing.assert_allclose(
        model.log_prob(batch.x), theirs.score_samples(batch.x.numpy()), atol=1e-8
    )
    np.testing.assert_allclose(
        model.encode(batch.x), theirs.predict_proba(batch.x.numpy()), atol=1e-8
    )


def test_a_streamed_pass_of_em_is_a_whole_one():
    batch = blobs()
    states = []
    for whole in (True, False):
        model = GMM(POINTS, components=3, conditional=True).double()
        starts = [batch.x[batch.y == g][:3] for g in range(3)]
        model.em(items(batch, whole=whole), starts)
        model.em(items(batch, whole=whole))
        states.append(model.state_dict())
    for name, value in states[0].items():
        torch.testing.assert_close(value, states[1][name], atol=1e-10, rtol=1e-10)


def test_a_mixture_of_bernoullis_is_a_distribution_and_em_lifts_its_likelihood():
    batch = bits()
    model, losses = fitted(BernoulliMixture(BINARY, components=3, smoothing=1e-9), batch, 10)
    assert all(b <= a + 1e-10 for a, b in itertools.pairwise(losses)) and losses[-1] < losses[0]
    every = torch.tensor(list(itertools.product([0.0, 1.0], repeat=6))).double().view(-1, 1, 2, 3)
    assert model.log_prob(every).logsumexp(0).item() == pytest.approx(0, abs=1e-10)
    parts = (
        Bernoulli(model.mean[0]).log_prob(every.flatten(1)[:, None]).sum(-1) + model.weight[0].log()
    )
    torch.testing.assert_close(model.log_prob(every), parts.logsumexp(1), atol=1e-10, rtol=0)


@pytest.mark.parametrize("make", [
    *(lambda c, form=form: GMM(POINTS, components=2, conditional=c, **form) for form in FORMS),
    lambda c: PCA(POINTS, latent=2, conditional=c),
    lambda c: BernoulliMixture(BINARY, components=2, conditional=c),
])  # fmt: skip
def test_samples_have_the_mean_and_covariance_of_the_data(make):
    """At EM's fixed point a mixture's mean is the data's, and a full covariance too; draws of a class have that class's."""
    for c in (False, True):
        model = make(c)
        batch = bits() if isinstance(model, BernoulliMixture) else blobs()
        model, _ = fitted(model, batch, 5)
        y = torch.full((20_000,), 2) if c else None
        drawn, seen = model.sample(20_000, y).flatten(1), batch.x[batch.y == 2] if c else batch.x
        error = drawn.std(0) / 20_000**0.5
        assert ((drawn.mean(0) - seen.flatten(1).mean(0)).abs() < 5 * error + 0.01).all()
        if getattr(model, "covariance", None) is not None and hasattr(model.covariance, "triangle"):
            torch.testing.assert_close(drawn.T.cov(), seen.T.cov(), atol=0.5, rtol=0.1)


# --- k-means ----------------------------------------------------------------------------------------------------------


def test_lloyd_s_inertia_falls_and_the_best_start_is_kept():
    batch = blobs()
    inertia = [fitted(KMeans(POINTS, components=6, passes=i), batch)[1][0] for i in range(1, 8)]
    assert all(b <= a + 1e-9 for a, b in itertools.pairwise(inertia)) and inertia[-1] < inertia[0]
    model, losses = fitted(KMeans(POINTS, components=6), batch, 5)
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] == pytest.approx(squared_distances(batch.x, model.centres).sum().item())
    theirs = min(Lloyd(6, n_init=1, random_state=i).fit(batch.x.numpy()).inertia_ for i in range(5))
    assert losses[-1] == pytest.approx(theirs, rel=1e-9)
    _, streamed = fitted(KMeans(POINTS, components=6, passes=20), batch, 3, whole=False)
    assert losses[-1] < streamed[-1] * (1 + 1e-9) and streamed[-1] < 1.3 * losses[-1]
    back = model.decode(model.encode(batch.x))
    torch.testing.assert_close(
        (batch.x - back).square().sum(1), squared_distances(batch.x, model.centres)
    )


# --- the trainer ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", ["pca", "kmeans", "gmm", "bernoulli_mixture"])
def test_the_trainer_streams_what_does_not_fit_in_memory(recipe):
    small = "model.latent=3" if recipe == "pca" else "model.components=3"
    _, dataset, trainer = built(
        f"model={recipe}", small, *SMALL[1:], "trainer.batch_size=200", "trainer.whole=false"
    )
    stream = trainer.stream(dataset)
    losses = [trainer.advance(stream)["loss"].item() for _ in range(3)]
    assert not trainer.items.whole and trainer.items._all is None
    assert losses[-1] <= losses[0] and trainer.items_a_step == dataset.size("train")
    a, b = (torch.cat([x for x, _ in trainer.items]) for _ in range(2))
    assert torch.equal(a, b), "the noise is the same in every pass"


REFUSED = [
    (lambda: PCA(Spec((1, 8, 8))), "prepare.dequantise=true"),
    (lambda: GMM(BINARY), "prepare.dequantise=true prepare.binarize=none"),
    (lambda: GMM(Spec((9,), kind="tokens", vocab=5)), "tokens"),
    (lambda: GMM(POINTS, covariance="low_rank"), "model.rank"),
    (lambda: GMM(POINTS, rank=2), "model.rank"),
    (lambda: GMM(POINTS, covariance="low_rank", rank=5), "below the 5 values"),
    (lambda: PCA(POINTS, latent=5), "below the 5 values"),
    (lambda: PCA(Spec((5,), kind="points", levels=0), latent=2, conditional=True), "classes"),
    (lambda: BernoulliMixture(Spec((1, 2, 2), levels=2)), "prepare.range="),
    (lambda: fitted(KMeans(POINTS, components=700), blobs()), "600 items"),
    (lambda: fitted(PCA(POINTS, latent=4, conditional=True), blobs(9)), "class 0 has 3 items"),
    (lambda: GMM(POINTS).log_prob(torch.zeros(2, 5), torch.zeros(2)), "knows no classes"),
]


@pytest.mark.parametrize("refused, words", REFUSED, ids=[words for _, words in REFUSED])
def test_what_does_not_fit_is_refused(refused, words):
    with pytest.raises(UserError, match=words):
        refused()
