"""Models of series: exact densities, draws of the exact forecast of an AR(2) process."""

from __future__ import annotations

import math

import pytest
import torch

from genlab.abilities import abilities
from genlab.data.series import AR2
from genlab.errors import UserError
from genlab.metrics import forecast_baselines
from genlab.metrics.base import Settings
from genlab.metrics.crps import crps_of_quantiles, fair_crps
from genlab.metrics.forecast_samples import draw_forecasts
from genlab.models.series.csdi import CSDI
from genlab.models.series.deepar import DeepAR
from genlab.spec import DataSpec


def series_spec(past: int, future: int, columns: int = 1, features: int = 0) -> DataSpec:
    source = DataSpec((past + future, columns + features), kind="series", levels=0)
    return DataSpec((future, columns), kind="series", levels=0, task="forecast", source=source)


def condition(spec: DataSpec, n: int = 2) -> torch.Tensor:
    cond = torch.randn(n, *spec.source.shape)
    cond[:, -spec.shape[0] :, : spec.shape[1]] = 0
    return cond


def exact_deepar(data: AR2) -> DeepAR:
    """Return the DeepAR whose linear part is the process and whose network adds nothing."""
    model = DeepAR(data.spec, hidden=3, num_layers=1, lags=2, min_deviation=1e-6)
    (network,) = model.members
    torch.nn.init.zeros_(network.output.weight)
    torch.nn.init.zeros_(network.output.bias)
    deviation = 1 / data.columns[0].scale - 1e-6
    with torch.no_grad():
        network.output.bias[2] = math.log(math.expm1(deviation))  # after weight and mean
        network.linear.linear.weight[0] = torch.tensor(data.phi[::-1])  # the newest value last
    return model


def test_deepar_can_be_the_exact_forecast_of_ar2(float64):
    data = AR2(n=200, num_heldout=200)
    batch = data.head("test", 4)
    model = exact_deepar(data)
    cond, x = batch.cond.double(), batch.x.double()
    log_p = model.forecast_log_prob(x, cond)
    assert torch.allclose(log_p, data.true_forecast_log_prob(x, cond), atol=1e-9, rtol=0)
    draws = data.to_own_units(model.forecast(cond, 4000))
    mean, deviation = data.true_forecast(cond)
    assert draws.shape == (4000, 4, 20, 1)
    assert ((draws.mean(0) - mean).abs() < 4.5 * deviation / 4000**0.5).all()
    assert ((draws.std(0) / deviation - 1).abs() < 4.5 / 8000**0.5).all()
    # steps of a draw belong together
    error = (draws - mean)[:, 0, :, 0]
    wanted = [1.0, *(0.0 for _ in range(19))]
    innovations = error.clone()
    innovations[:, 1:] -= data.phi[0] * error[:, :-1]
    innovations[:, 2:] -= data.phi[1] * error[:, :-2]
    covariance = innovations.T.cov()[0]
    assert torch.allclose(covariance, torch.tensor(wanted), atol=0.1)


@pytest.mark.parametrize(("shape", "members"), [((2, 1), 2), ((1, 2), 1)])
def test_the_density_of_deepar_integrates_to_one(shape, members, float64):
    spec = series_spec(5, *shape, features=2)
    sizes = {"hidden": 6, "num_layers": 1, "num_components": 3, "members": members}
    model = DeepAR(spec, **sizes, lags=2, averages=(4,))
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.4)
    for network in model.members:
        torch.nn.init.constant_(network.output.bias, 0.5)
    cond = condition(spec, 1)
    axis = torch.linspace(-20, 20, 321)
    grid = torch.cartesian_prod(axis, axis).view(-1, *shape)
    log_p = torch.cat(
        [
            model.forecast_log_prob(part, cond.expand(len(part), -1, -1))
            for part in grid.split(30_000)
        ]
    )
    cell = (axis[1] - axis[0]).item() ** 2
    assert math.isclose(log_p.exp().sum().item() * cell, 1, abs_tol=1e-4)
    # draws have the moments of the density
    mass = (log_p.exp() * cell)[:, None]
    mean, square = ((mass * grid.flatten(1) ** k).sum(0) for k in (1, 2))
    drawn = model.forecast(cond, 20_000).flatten(1)
    assert ((drawn.mean(0) - mean).abs() < 5 * drawn.std(0) / 20_000**0.5).all()
    assert ((drawn.square().mean(0) / square - 1).abs() < 0.06).all()


def test_a_distribution_depends_only_on_values_before(float64):
    spec = series_spec(6, 3, columns=2, features=1)
    model = DeepAR(spec, hidden=5, num_layers=2, lags=2, averages=(3,))
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.4)
    values = torch.randn(1, 8, 2, requires_grad=True)
    theta, _ = model.members[0](values, torch.randn(1, 6, 1))
    for t in range(6):  # the distribution of the step 3 + t sees the values 0 … 2 + t
        (gradient,) = torch.autograd.grad(
            theta.mean[:, t].sum() + theta.log_diagonal[:, t].sum(), values, retain_graph=True
        )
        assert (gradient[0, 3 + t :] == 0).all() and (gradient[0, 2 + t] != 0).all()


@pytest.mark.parametrize("make", [DeepAR, CSDI])
def test_scaled_windows_follow_the_level_and_the_unit_of_their_past(make, float64):
    spec = series_spec(12, 4)
    sizes = {"hidden": 5, "num_layers": 1} if make is DeepAR else {"channels": 8, "num_heads": 2}
    model = make(spec, scale="window", **sizes).eval()
    cond = condition(spec)
    moved = cond.clone()
    moved[:, :12] = 50 * cond[:, :12] + 1000
    drawn = []
    for given in (cond, moved):
        torch.manual_seed(0)
        drawn.append(model.forecast(given, 3))
    assert torch.allclose(50 * drawn[0] + 1000, drawn[1], rtol=1e-4)
    if make is DeepAR:
        x = drawn[0][0]
        difference = model.forecast_log_prob(x, cond) - model.forecast_log_prob(
            50 * x + 1000, moved
        )
        assert torch.allclose(difference, torch.tensor(4 * math.log(50)), atol=1e-3)


class ExactCSDI(CSDI):
    """CSDI with the best possible noise prediction for the forecast of an AR(2) process."""

    data: AR2

    def predict_noise(self, x, t, past, features):
        data, horizon = self.data, self.horizon
        scale = data.columns[0].scale
        psi = torch.zeros(horizon)
        psi[0] = 1
        for j in range(1, horizon):
            psi[j] = data.phi[0] * psi[j - 1] + (data.phi[1] * psi[j - 2] if j > 1 else 0)
        index = torch.arange(horizon)[:, None] - torch.arange(horizon)
        response = torch.where(index >= 0, psi[index.clamp(0)], 0.0) / scale
        cond = torch.cat([past, past.new_zeros(len(past), horizon, 1)], 1)
        mean = (data.true_forecast(cond)[0] / scale)[..., 0]
        a = self.alphas_bar.double()[t[0]]
        # x_t ~ N(√ᾱ m, ᾱ Σ + (1 − ᾱ) I):  E[ε | x_t] = √(1 − ᾱ) (ᾱ Σ + (1 − ᾱ) I)⁻¹ (x_t − √ᾱ m)
        covariance = a * response @ response.T + (1 - a) * torch.eye(horizon)
        error = x[..., 0] - a.sqrt() * mean
        return ((1 - a).sqrt() * torch.linalg.solve(covariance, error.T).T)[..., None]


def test_the_sampler_of_csdi_draws_the_exact_forecast_with_the_exact_noise(float64):
    data = AR2(n=200, num_heldout=200, target_steps=6)
    model = ExactCSDI(data.spec, channels=8, num_layers=1, num_heads=2, timesteps=100)
    model.data = data
    batch = data.head("test", 2)
    draws = data.to_own_units(model.forecast(batch.cond.double(), 2000))
    mean, deviation = data.true_forecast(batch.cond.double())
    assert ((draws.mean(0) - mean).abs() < 0.03 * deviation + 4.5 * deviation / 2000**0.5).all()
    assert ((draws.std(0) / deviation - 1).abs() < 0.1).all()
    crps = fair_crps(draws, mean + deviation * torch.randn(2, 6, 1))
    assert torch.isfinite(crps).all()


def crps_ratio(model, data: AR2) -> float:
    """Return the CRPS of a model divided by that of the exact forecast, on the same windows."""
    samples = draw_forecasts(model.eval(), data, Settings(n=100), torch.device("cpu"))
    own = fair_crps(samples.draws, samples.x).mean()
    exact = crps_of_quantiles(samples.exact, samples.x).mean()
    return float(own / exact)


def train(model, data: AR2, steps: int, lr: float, batch_size: int) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    batches = data.batches("train", batch_size)
    for _ in range(steps):
        optimizer.zero_grad()
        model.loss(next(batches))["loss"].backward()
        optimizer.step()
        schedule.step()


@pytest.fixture
def no_baselines(monkeypatch):
    """Leave out the baselines that are fitted, to save time."""
    monkeypatch.setattr(forecast_baselines, "find_spec", lambda name: None)


@pytest.mark.usefixtures("no_baselines")
def test_a_trained_deepar_is_as_good_as_the_exact_forecast():
    data = AR2(n=4000, num_heldout=2100, heldout_stride=20)
    model = DeepAR(data.spec, hidden=8, num_layers=1, lags=2)
    assert crps_ratio(model, data) > 1.1
    train(model, data, 250, 2e-2, 64)
    assert crps_ratio(model, data) < 1.02


@pytest.mark.slow
@pytest.mark.usefixtures("no_baselines")
def test_a_trained_csdi_is_within_a_tenth_of_the_exact_forecast():
    data = AR2(num_heldout=2100, heldout_stride=20, context_steps=4, target_steps=8)
    model = CSDI(data.spec, channels=32, num_layers=2, num_heads=4, embedding=32)
    assert crps_ratio(model, data) > 1.5
    train(model, data, 2000, 2e-3, 128)
    assert crps_ratio(model, data) < 1.1  # 1.058 is measured; a longer training is better


@pytest.mark.parametrize("make", [DeepAR, CSDI])
def test_a_model_of_series_refuses_other_data(make):
    with pytest.raises(UserError, match="set dataset=series"):
        make(DataSpec((1, 8, 8)))
    assert "forecast" in abilities(make) and "sample" not in abilities(make)
