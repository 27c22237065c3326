"""Classical models against the SVD, PyTorch's densities and scikit-learn's fits."""

from __future__ import annotations

import itertools
import math
from functools import partial

import numpy as np
import pytest
import torch
from helpers.recipes import FAST_OVERRIDES, build_training_objects
from sklearn.cluster import KMeans as Lloyd
from sklearn.mixture import GaussianMixture
from torch.distributions import Bernoulli, MultivariateNormal

from genlab.errors import UserError
from genlab.models.classical.bernoulli_mixture import BernoulliMixture
from genlab.models.classical.covariance import FullCovariance, LowRankCovariance
from genlab.models.classical.full_batch import TrainingItems
from genlab.models.classical.gmm import GMM
from genlab.models.classical.kmeans import KMeans, squared_distance_to_nearest
from genlab.models.classical.pca import PCA
from genlab.spec import Batch, DataSpec

POINTS = DataSpec((5,), kind="points", levels=0, num_classes=3)
BINARY = DataSpec((1, 2, 3), levels=2, range=(0.0, 1.0), num_classes=3)
FORMS = [
    {"covariance": "spherical"},
    {"covariance": "diagonal"},
    {"covariance": "full"},
    {"covariance": "low_rank", "rank": 2},
]
forms = pytest.mark.parametrize("form", FORMS, ids=lambda form: form["covariance"])


def blobs(n: int = 600) -> Batch:
    """Three classes of correlated points whose centers are some standard deviations apart."""
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


def training_items(batch: Batch, *, full_batch: bool = True, size: int = 64) -> TrainingItems:
    def start_pass():
        for i in range(0, len(batch), size):
            yield Batch(batch.x[i : i + size], batch.y[i : i + size])

    return TrainingItems(start_pass, full_batch=full_batch)


def fit(model, batch: Batch, steps: int = 1, *, full_batch: bool = True):
    """Return the model in float64 after some steps, and the loss of each step."""
    model, items = model.double(), training_items(batch, full_batch=full_batch)
    return model, [model.fit_step(items, step=i, seed=i)["loss"].item() for i in range(steps)]


def exact_density(model: GMM | PCA, group: int = 0) -> MultivariateNormal:
    """Return PyTorch's density of the first Gaussian of a group, with its full covariance."""
    i, covariance = group * getattr(model, "num_components", 1), model.covariance
    if hasattr(covariance, "scale_tril"):
        sigma = covariance.scale_tril[i] @ covariance.scale_tril[i].T
    elif hasattr(covariance, "eigenvectors"):
        w = covariance.eigenvectors[i].T * covariance.loading_norms[i]
        sigma = w @ w.T + covariance.noise_variance[i] * torch.eye(len(w)).double()
    else:
        sigma = covariance.variance[i].diag()
    return MultivariateNormal(model.mean[i], sigma)


# --- small variances, and values that determine each other ----------------------------------------


@pytest.mark.parametrize("noise_variance", [1e-2, 1e-4, 1e-6])
def test_low_rank_density_does_not_cancel(noise_variance):
    """|x|²/σ² minus its part in the subspace lost 4 nats at σ² = 1e-4, and 280 at 1e-6."""
    torch.manual_seed(0)
    dim, rank = 200, 20
    axes = torch.linalg.qr(torch.randn(dim, dim).double())[0][:, :rank].T
    values, noise = 100 * torch.rand(rank).double() + 1, torch.tensor(noise_variance).double()
    exact, single = (
        LowRankCovariance(1, dim, rank=rank).double(),
        LowRankCovariance(1, dim, rank=rank),
    )
    for covariance in (exact, single):
        covariance.set_eigendecomposition(axes, values, noise, 0)
    x = (torch.randn(300, rank).double() * values.sqrt()) @ axes
    x = x + noise.sqrt() * torch.randn(300, dim).double()
    error = (single.log_prob(x.float(), 0) - exact.log_prob(x, 0)).abs().max()
    assert error < (0.02 if noise_variance < 1e-5 else 2e-3)


def degenerate_data(kind: str, scale: float) -> Batch:
    torch.manual_seed(0)
    x = torch.randn(200, 5)
    if kind == "collinear":
        x[:, 3], x[:, 4] = x[:, 0] + x[:, 1], 2 * x[:, 2]
    elif kind == "constant":
        x[:, 2:] = 3.0
    elif kind == "one-hot":
        x = torch.nn.functional.one_hot(torch.randint(5, (200,)), 5).float()
    elif kind == "few":
        x = x[:7]
    return Batch(scale * x, torch.zeros(len(x), dtype=torch.long))


@pytest.mark.parametrize(("scale", "full_batch"), [(1.0, True), (1e4, False)])
@pytest.mark.parametrize("kind", ["collinear", "constant", "one-hot", "few"])
@pytest.mark.parametrize(
    "make",
    [
        lambda: PCA(POINTS, latent=3),
        lambda: PCA(POINTS, latent=4),
        lambda: GMM(POINTS, num_components=2),
        lambda: GMM(POINTS, num_components=2, reg_covar=0.0),
        lambda: GMM(POINTS, num_components=2, covariance="diagonal"),
        lambda: GMM(POINTS, num_components=2, covariance="diagonal", reg_covar=0.0),
        lambda: GMM(POINTS, num_components=2, covariance="low_rank", rank=3),
    ],
)
def test_values_without_variance_get_a_floor_that_is_said_or_are_refused(
    make, kind, scale, full_batch
):
    """Collinear columns made the density NaN, or Cholesky fail."""
    batch = degenerate_data(kind, scale)
    model, items = make(), training_items(batch, full_batch=full_batch)
    try:
        losses = [model.fit_step(items, step=i, seed=i)["loss"] for i in range(3)]
    except UserError as error:
        assert "set model.reg_covar=1e-6" in str(error) and model.reg_covar == 0
        return
    assert torch.isfinite(torch.stack([loss.double() for loss in losses])).all()
    log_prob = model.log_prob(batch.x)
    assert torch.isfinite(log_prob).all() and torch.isfinite(model.sample(5)).all()
    exact = model.double().log_prob(batch.x.double())
    assert (log_prob - exact).abs().max() < 0.05 * 5  # the floor is one that float32 resolves
    is_flat = kind in ("collinear", "constant") and isinstance(model, PCA)
    if is_flat or (kind == "collinear" and isinstance(model.covariance, FullCovariance)):
        (note,) = model.fit_notes()
        assert "floor" in note and ("model.latent" in note or "model.reg_covar" in note)


def test_a_floor_is_printed_once_and_its_remedy_works(genlab, tmp_path):
    rows = ["a,b,c,d"]
    torch.manual_seed(0)
    for a, b in torch.randn(200, 2).tolist():
        rows.append(f"{a},{b},{a + b},{2 * a}")
    (tmp_path / "t.csv").write_text("\n".join(rows))
    train = ("train", "model=pca", "dataset=table", "dataset.path=t.csv", "dataset.label=none")
    result = genlab(*train, "model.latent=2", "device=cpu", "out=a")
    assert result.code == 0, result.err
    assert (result.out + result.err).count("in at most 2 of its 4 directions") == 1
    result = genlab(*train, "model.latent=1", "device=cpu", "out=b")
    assert result.code == 0 and "directions" not in result.out + result.err


# --- probabilistic PCA ----------------------------------------------------------------------------


@pytest.mark.parametrize("full_batch", [True, False], ids=["full_batch", "streamed"])
def test_pca_matches_the_svd_and_a_gaussian_density(full_batch):
    batch = blobs()
    batch.x *= torch.tensor([9, 5, 1, 0.6, 0.5])  # a clear gap, also for the incremental fit
    model, (loss,) = fit(PCA(POINTS, latent=2), batch, full_batch=full_batch)
    away = batch.x - batch.x.mean(0)
    _, s, vt = torch.linalg.svd(away, full_matrices=False)
    values = s.square() / len(away)
    tolerance = {"atol": 1e-9, "rtol": 1e-9} if full_batch else {"atol": 2e-2, "rtol": 2e-2}
    projector = model.covariance.eigenvectors[0].T @ model.covariance.eigenvectors[0]
    torch.testing.assert_close(projector, vt[:2].T @ vt[:2], **tolerance)
    torch.testing.assert_close(model.covariance.eigenvalues[0], values[:2], **tolerance)
    # Tipping & Bishop 1999, equation 8
    torch.testing.assert_close(model.covariance.noise_variance[0], values[2:].mean(), **tolerance)
    residual = away - away @ projector
    torch.testing.assert_close(model.decode(model.encode(batch.x)), batch.x - residual, **tolerance)
    torch.testing.assert_close(
        model.log_prob(batch.x), exact_density(model).log_prob(batch.x), atol=1e-9, rtol=0
    )
    assert loss == pytest.approx(-model.log_prob(batch.x).mean().item(), abs=1e-9)
    if full_batch:  # equation 3 at the optimum: L = −½ {D log 2π + log|C| + D}
        log_det = values[:2].log().sum() + 3 * values[2:].mean().log()
        assert loss == pytest.approx(
            0.5 * (5 * math.log(2 * math.pi) + log_det.item() + 5), abs=1e-9
        )


def test_pca_is_the_maximum_likelihood_fit():
    batch = blobs()
    model, (loss,) = fit(PCA(POINTS, latent=2), batch)
    for name, parameter in model.covariance.named_parameters():
        for factor in (0.95, 1.05):
            before = parameter.clone()
            parameter.mul_(factor) if name != "eigenvectors" else parameter.copy_(
                parameter.roll(1, -1)
            )
            assert -model.log_prob(batch.x).mean().item() > loss + 1e-4, name
            parameter.copy_(before)


# --- mixtures -------------------------------------------------------------------------------------


@forms
def test_gmm_density_is_the_mixture_of_its_gaussians(form):
    model, _ = fit(GMM(POINTS, num_components=1, conditional=True, **form), blobs())
    x, y = blobs().x[:50], blobs().y[:50]
    each = torch.stack([exact_density(model, g).log_prob(x) for g in range(3)], 1)
    torch.testing.assert_close(
        model.log_prob(x, y), each.gather(1, y[:, None])[:, 0], atol=1e-9, rtol=0
    )
    torch.testing.assert_close(
        model.log_prob(x), (each - math.log(3)).logsumexp(1), atol=1e-9, rtol=0
    )
    torch.testing.assert_close(model.encode(x), (each - math.log(3)).softmax(1), atol=1e-12, rtol=0)


@forms
@pytest.mark.parametrize("full_batch", [True, False], ids=["full_batch", "streamed"])
def test_em_never_lowers_the_likelihood(form, full_batch):
    _, losses = fit(
        GMM(POINTS, num_components=4, reg_covar=0.0, **form), blobs(), 12, full_batch=full_batch
    )
    assert (
        all(b <= a + 1e-10 for a, b in itertools.pairwise(losses)) and losses[-1] < losses[0] - 1e-3
    )


@pytest.mark.parametrize("form", FORMS[:3], ids=lambda form: form["covariance"])
def test_gmm_matches_scikit_learn_from_the_same_start(form):
    """The same k-means labels, reg_covar and number of passes give the same likelihoods."""
    batch = blobs()
    model, _ = fit(GMM(POINTS, num_components=4, **form), batch, 7)
    start = Lloyd(4, n_init=1, max_iter=20, random_state=0).fit(batch.x.numpy())
    r = np.eye(4)[start.labels_]
    kind = {"diagonal": "diag"}.get(form["covariance"], form["covariance"])
    theirs = GaussianMixture(4, covariance_type=kind, max_iter=7, tol=0.0, reg_covar=1e-6)
    # the M-step for the labels, as after scikit-learn's own k-means initialization
    theirs._initialize(batch.x.numpy(), r)
    theirs.converged_, theirs.lower_bound_, theirs.warm_start = False, -np.inf, True
    with pytest.warns(Warning, match="did not converge"):
        theirs.fit(batch.x.numpy())
    np.testing.assert_allclose(
        model.log_prob(batch.x), theirs.score_samples(batch.x.numpy()), atol=1e-8
    )
    np.testing.assert_allclose(
        model.encode(batch.x), theirs.predict_proba(batch.x.numpy()), atol=1e-8
    )


def test_streamed_em_pass_equals_a_full_batch_pass():
    batch = blobs()
    states = []
    for full_batch in (True, False):
        model = GMM(POINTS, num_components=3, conditional=True).double()
        centers = [batch.x[batch.y == g][:3] for g in range(3)]
        model.em_pass(training_items(batch, full_batch=full_batch), centers)
        model.em_pass(training_items(batch, full_batch=full_batch))
        states.append(model.state_dict())
    for name, value in states[0].items():
        torch.testing.assert_close(value, states[1][name], atol=1e-10, rtol=1e-10)


def test_bernoulli_mixture_sums_to_one_and_em_increases_its_likelihood():
    batch = bits()
    model, losses = fit(BernoulliMixture(BINARY, num_components=3, smoothing=1e-9), batch, 10)
    assert all(b <= a + 1e-10 for a, b in itertools.pairwise(losses)) and losses[-1] < losses[0]
    every = torch.tensor(list(itertools.product([0.0, 1.0], repeat=6))).double().view(-1, 1, 2, 3)
    assert model.log_prob(every).logsumexp(0).item() == pytest.approx(0, abs=1e-10)
    parts = (
        Bernoulli(model.mean[0]).log_prob(every.flatten(1)[:, None]).sum(-1) + model.weight[0].log()
    )
    torch.testing.assert_close(model.log_prob(every), parts.logsumexp(1), atol=1e-10, rtol=0)


@pytest.mark.parametrize(
    "make",
    [
        *(partial(GMM, POINTS, num_components=2, **form) for form in FORMS),
        partial(PCA, POINTS, latent=2),
        partial(BernoulliMixture, BINARY, num_components=2),
    ],
)
def test_samples_have_the_mean_and_covariance_of_the_data(make):
    """At a fixed point of EM the mean and a full covariance are those of the data."""
    for c in (False, True):
        model = make(conditional=c)
        batch = bits() if isinstance(model, BernoulliMixture) else blobs()
        model, _ = fit(model, batch, 5)
        y = torch.full((20_000,), 2) if c else None
        drawn, seen = model.sample(20_000, y).flatten(1), batch.x[batch.y == 2] if c else batch.x
        error = drawn.std(0) / 20_000**0.5
        assert ((drawn.mean(0) - seen.flatten(1).mean(0)).abs() < 5 * error + 0.01).all()
        if getattr(model, "covariance", None) is not None and hasattr(
            model.covariance, "scale_tril"
        ):
            torch.testing.assert_close(drawn.T.cov(), seen.T.cov(), atol=0.5, rtol=0.1)


# --- k-means --------------------------------------------------------------------------------------


def test_kmeans_inertia_decreases_and_the_best_run_is_kept():
    batch = blobs()
    inertia = [
        fit(KMeans(POINTS, num_clusters=6, max_iterations=i), batch)[1][0] for i in range(1, 8)
    ]
    assert all(b <= a + 1e-9 for a, b in itertools.pairwise(inertia)) and inertia[-1] < inertia[0]
    model, losses = fit(KMeans(POINTS, num_clusters=6), batch, 5)
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] == pytest.approx(
        squared_distance_to_nearest(batch.x, model.centers).sum().item()
    )
    theirs = min(Lloyd(6, n_init=1, random_state=i).fit(batch.x.numpy()).inertia_ for i in range(5))
    assert losses[-1] == pytest.approx(theirs, rel=1e-9)
    _, streamed = fit(KMeans(POINTS, num_clusters=6, max_iterations=20), batch, 3, full_batch=False)
    assert losses[-1] < streamed[-1] * (1 + 1e-9) and streamed[-1] < 1.3 * losses[-1]
    back = model.decode(model.encode(batch.x))
    torch.testing.assert_close(
        (batch.x - back).square().sum(1), squared_distance_to_nearest(batch.x, model.centers)
    )


# --- trainer --------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", ["pca", "kmeans", "gmm", "bernoulli_mixture"])
def test_trainer_streams_without_full_batch(recipe):
    options = {"pca": "model.latent=3", "kmeans": "model.num_clusters=3"}
    small = options.get(recipe, "model.num_components=3")
    _, dataset, trainer = build_training_objects(
        f"model={recipe}",
        small,
        *FAST_OVERRIDES[1:],
        "trainer.batch_size=200",
        "trainer.full_batch=false",
    )
    stream = trainer.train_batches(dataset)
    losses = [trainer.train_step(stream)["loss"].item() for _ in range(3)]
    assert not trainer.items.full_batch and trainer.items._all is None
    assert losses[-1] <= losses[0] and trainer.items_per_step == dataset.size("train")
    a, b = (torch.cat([x for x, _ in trainer.items]) for _ in range(2))
    assert torch.equal(a, b), "the noise must be the same in every pass"


REJECTED = [
    (lambda: PCA(DataSpec((1, 8, 8))), "preprocess.dequantize=true"),
    (lambda: GMM(BINARY), "preprocess.dequantize=true preprocess.binarize=none"),
    (lambda: GMM(DataSpec((9,), kind="tokens", vocab=5)), "tokens"),
    (lambda: GMM(POINTS, covariance="low_rank"), "model.rank"),
    (lambda: GMM(POINTS, rank=2), "model.rank"),
    (lambda: GMM(POINTS, covariance="low_rank", rank=5), "below the 5 values"),
    (lambda: PCA(POINTS, latent=5), "below the 5 values"),
    (
        lambda: PCA(DataSpec((5,), kind="points", levels=0), latent=2, conditional=True),
        "requires labels",
    ),
    (lambda: BernoulliMixture(DataSpec((1, 2, 2), levels=2)), "preprocess.range="),
    (lambda: fit(KMeans(POINTS, num_clusters=700), blobs()), "600 items"),
    (lambda: fit(PCA(POINTS, latent=4, conditional=True), blobs(9)), "class 0 has 3 items"),
    (lambda: GMM(POINTS).log_prob(torch.zeros(2, 5), torch.zeros(2)), "not class-conditional"),
]


@pytest.mark.parametrize("construct, words", REJECTED, ids=[words for _, words in REJECTED])
def test_rejects_data_and_options_that_do_not_fit(construct, words):
    with pytest.raises(UserError, match=words):
        construct()
