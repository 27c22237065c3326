"""Abilities: one Protocol per verb that a model may implement.

Commands require abilities, not families.

The check is by name: a class has an ability when it has the method. So submodules are named by
nouns (`encoder`) and abilities by verbs (`encode`). Likelihoods are in nats per sample, shape (B,),
of the data as the dataset provides it.

Every model accepts the arguments shown here. A model that does not need one ignores it: y in an
unconditional model, `steps` and `num_terms` in a model that computes the result exactly or in one
pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

from genlab.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor


class Estimate(NamedTuple):
    """A number, its standard error if it has one, and its tag: "exact", "bound" or "estimate".

    `note` is a caveat for the reader, in words. `effective_chains` is the number of equally
    weighted chains that an importance-sampling estimate is worth.
    """

    value: float
    error: float | None
    tag: str
    note: str = ""
    effective_chains: float | None = None


class BoundTerms(NamedTuple):
    """The terms of a diffusion model's bound −log p(x) ≤ L_T + Σ_t L_{t−1} + L_0, in nats.

    Attributes:
        prior: L_T (B,), how far the noisiest level is from p(x_T).
        steps: (B, K): each column is a random estimate of the sum of L_i over borders[k] ≤ i <
            borders[k + 1], where L_i is the term of the step from x_{i+1} to x_i.
        reconstruction: L_0 (B,) = −log p(x_0 | x_1).
        borders: (K + 1,).
    """

    prior: Tensor
    steps: Tensor
    reconstruction: Tensor
    borders: Tensor

    @property
    def total(self) -> Tensor:
        """The upper bound (B,) of −log p(x), or its random estimate."""
        return self.prior + self.reconstruction + self.steps.sum(1)


@dataclass(frozen=True)
class TrajectoryState:
    """A state on the way from noise to samples, or from data to noise.

    Attributes:
        time: its place in the process: the time of a diffusion, or the number of a step.
        name: what is written above it, such as "t = 250".
        x: the n states (n, *shape), as items of the data. Whoever keeps them must copy them.
        guess: the model's guess (n, *shape) of the final items, if it makes one.
        known: which values of x are drawn already, bool (n, *shape); None for all.
        next_probs: probabilities (n, K) of the levels or tokens of the next value.
        numbers: what is written below it: a number by its symbol, one for all or one each (n,).
    """

    time: float
    name: str
    x: Tensor
    guess: Tensor | None = None
    known: Tensor | None = None
    next_probs: Tensor | None = None
    numbers: Mapping[str, float | Tensor] = field(default_factory=dict)


Report = Callable[[TrajectoryState], None]  # receives the states of a trajectory in their order


# --- the abilities that a command or a metric uses ------------------------------------------------


@runtime_checkable
class Samples(Protocol):
    def sample(self, n: int, y: Tensor | None = None, **sampler: Any) -> Tensor:
        """Draw n samples (n, *shape) with the global random state.

        Args:
            y: classes (n,), or the tokens (n, T) of prompts; None draws them too, or samples
                unconditionally.
            sampler: options of the model's sampler, such as `steps` and `guidance`.
        """


@runtime_checkable
class HasTrajectory(Protocol):
    def trajectory(
        self,
        report: Report,
        n: int,
        y: Tensor | None = None,
        *,
        start: Tensor | None = None,
        **sampler: Any,
    ) -> Tensor:
        """Draw n samples (n, *shape) exactly as `sample` does, and report the states on the way.

        The last state that is reported has the samples.

        Args:
            start: codes (n, …), as `prior` draws them, instead of random ones; for models with
                `prior`.
            sampler: the options of `sample`.
        """


@runtime_checkable
class HasForwardTrajectory(Protocol):
    def forward_trajectory(self, report: Report, x: Tensor, *, steps: int | None = None) -> None:
        """Report the states from items x (n, *shape), the first state, to noise or to a code.

        Args:
            steps: of a process that can be divided into any number; None takes the model's own.
        """


@runtime_checkable
class Encodes(Protocol):
    def encode(self, x: Tensor, *, steps: int | None = None) -> Tensor:
        """Return the code z (B, …) of x (B, *shape), without noise (a posterior's mean).

        Args:
            steps: of the solver or chain; None takes the model's default.
        """


@runtime_checkable
class Decodes(Protocol):
    def decode(self, z: Tensor) -> Tensor:
        """Return the item (B, *shape) of the code z (B, …), without noise (a likelihood's mean).

        A model without a gradient with respect to z sets `differentiable = False`.
        """


@runtime_checkable
class HasStyles(Protocol):
    def styles(self, z: Tensor, *, truncation: float = 1.0) -> Tensor:
        """Return the styles w (B, layers, dim) of codes z (B, …), from coarse to fine layers.

        A truncation below 1 moves them toward their mean.
        """


@runtime_checkable
class Synthesizes(Protocol):
    def synthesize(self, w: Tensor) -> Tensor:
        """Return the item (B, *shape) of styles w, without noise.

        w is (B, layers, dim), or (B, 1, dim) for one style in all layers.
        """


@runtime_checkable
class HasPosterior(Protocol):
    def posterior(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance (B, latent) of the Gaussian q(z|x), or q(z|x,y)."""


@runtime_checkable
class HasPrior(Protocol):
    def prior(self, n: int, y: Tensor | None = None) -> Tensor:
        """Draw n codes z from the prior, such that `decode(prior(n))` are samples."""


@runtime_checkable
class HasDensity(Protocol):
    def log_prob(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Return the exact log-density or log-probability (B,) of x in nats."""


@runtime_checkable
class ScoresTokens(Protocol):
    def token_log_probs(self, x: Tensor) -> Tensor:
        """Return log p (B, T) in nats of each token of x (B, T), given the tokens before it.

        The sequences may be longer than the model's context. Up to its length the sum over the
        tokens is `log_prob`.
        """


@runtime_checkable
class BoundsDensity(Protocol):
    def elbo(self, x: Tensor, y: Tensor | None = None, *, num_terms: int | None = None) -> Tensor:
        """Return a random lower bound (B,) of log p(x) in nats.

        Args:
            num_terms: timesteps drawn for a diffusion bound; None sums all of them.
        """


@runtime_checkable
class SplitsBound(Protocol):
    def bound_terms(
        self, x: Tensor, y: Tensor | None = None, *, num_terms: int | None = None
    ) -> BoundTerms:
        """Return the terms of the bound of log p(x), of which `elbo` is the negative sum.

        Args:
            num_terms: timesteps drawn; None evaluates all of them.
        """


@runtime_checkable
class PredictsNoise(Protocol):
    def eps_mse(
        self, x: Tensor, y: Tensor | None = None, *, num_terms: int | None = None
    ) -> Tensor:
        """Return a random estimate (B,) of the noise prediction error, over all noise levels.

        Args:
            num_terms: timesteps drawn; None uses all of them.
        """


@runtime_checkable
class HasIWAE(Protocol):
    def iwae(self, x: Tensor, num_samples: int, y: Tensor | None = None) -> Tensor:
        """Return the importance-weighted bound (B,) of log p(x) in nats."""


@runtime_checkable
class HasEnergy(Protocol):
    def energy(self, x: Tensor) -> Tensor:
        """Return the (free) energy (B,) of x in nats: log p(x) = −energy(x) − log Z."""


@runtime_checkable
class HasPartition(Protocol):
    def log_partition(self) -> Estimate:
        """Return log Z in nats: exact if enumerable, else an estimate with its standard error."""


@runtime_checkable
class Inpaints(Protocol):
    def inpaint(
        self, x: Tensor, known: Tensor, y: Tensor | None = None, *, steps: int | None = None
    ) -> Tensor:
        """Return x (B, *shape) with the values where `known` is False drawn given the others.

        Args:
            steps: of the chain or sampler; None takes the model's default.
        """


@runtime_checkable
class Imputes(Protocol):
    def impute(
        self, x: Tensor, known: Tensor, *, draws: int = 1, steps: int | None = None
    ) -> Tensor:
        """Draw the unknown values of x (B, D) given the known ones, `draws` times (draws, B, D).

        The draws differ, and the known values stay as they are.

        Args:
            known: bool (B, D). Values of x that are not known are ignored, and may be NaN.
            steps: of a chain or a sampler; None takes the model's default.
        """


@runtime_checkable
class ContinuesSequence(Protocol):
    def extend(self, x: Tensor, n: int) -> Tensor:
        """Return sequences x (B, T) with n more tokens (B, T + n), drawn autoregressively."""


@runtime_checkable
class Denoises(Protocol):
    def denoise(self, x: Tensor, *, sigma: float | None = None) -> Tensor:
        """Return the most likely clean item (B, *shape) of the noisy x (B, *shape).

        Args:
            sigma: standard deviation of the noise on x, if it is known.
        """


@runtime_checkable
class Classifies(Protocol):
    def classify(self, x: Tensor) -> Tensor:
        """Return log p(y|x) (B, classes) in nats of each class y."""


@runtime_checkable
class Restores(Protocol):
    def restore(
        self, y: Tensor, operator: Callable[[Tensor], Tensor], *, steps: int | None = None
    ) -> Tensor:
        """Return a draw x from the model such that operator(x) = y.

        Args:
            steps: of the sampler; None takes the model's default.
        """


@runtime_checkable
class Edits(Protocol):
    def edit(self, x: Tensor, strength: float, y: Tensor | None = None, **sampler: Any) -> Tensor:
        """Return variations of x (B, *shape), resampled from part of the way to noise.

        Args:
            strength: the share of the way, 0 … 1.
            y: classes (B,) of the results.
        """


@runtime_checkable
class HasODELikelihood(Protocol):
    def ode_log_prob(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Return an estimate (B,) of log p(x) in nats, by the probability flow ODE."""


@runtime_checkable
class Translates(Protocol):
    def translate(self, cond: Tensor, *, backward: bool = False) -> Tensor:
        """Return the target item (B, …) of each source in cond (B, …).

        Args:
            backward: translate targets to sources; for models with `translates_backward`.
        """


@runtime_checkable
class Forecasts(Protocol):
    def forecast(self, cond: Tensor, draws: int = 1) -> Tensor:
        """Draw futures (draws, B, H, C) of series, H = `spec.shape[0]`, from their past.

        Args:
            cond: (B, P + H, C + F), a row for each step: its values, which are 0 in the H steps to
                predict, and its F features; see `genlab.data.series.SeriesDataset`.
        """


@runtime_checkable
class HasForecastDensity(Protocol):
    def forecast_log_prob(self, x: Tensor, cond: Tensor) -> Tensor:
        """Return the exact log-density (B,) in nats of the futures x (B, H, C), given the past."""


# --- abilities of few models ----------------------------------------------------------------------


@runtime_checkable
class AssignsCategories(Protocol):
    def category(self, z: Tensor) -> Tensor:
        """Return the category (B,) of codes z (B, …) that the model learned without labels."""


@runtime_checkable
class HasGaussianComponents(Protocol):
    def gaussian_components(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return weights (K,), means (K, D) and covariances (K, D, D) of p(x) = Σ_k w_k N_k(x).

        With `category`, component k is category k.
        """


@runtime_checkable
class Discriminates(Protocol):
    def discriminate(self, x: Tensor) -> Tensor:
        """Return D's value (B,) at x (B, *shape), without the class of x.

        It is the logit of D(x), the probability that x is an item of the data, if the model's
        `discriminates_by_probability` is true; otherwise it is the score of a critic.
        """


@runtime_checkable
class HasPriorQuantiles(Protocol):
    def prior_quantiles(self, u: Tensor) -> Tensor:
        """Return the codes (B, d) of a prior with independent coordinates, at quantiles u (B, d).

        Uniform u in (0, 1) give draws of `prior`.
        """


# --- optional methods without a command ---------------------------------------------------------


@runtime_checkable
class HasFilters(Protocol):
    def filters(self) -> Tensor:
        """Return the weights (n, *shape) between the data and each unit of the first layer."""


@runtime_checkable
class HasODENoise(Protocol):
    def ode_noise_std(self) -> float:
        """Return the standard deviation of the noise at the ODE's first level, in data units."""


@runtime_checkable
class HasGibbsChain(Protocol):
    def gibbs_chain(self, x: Tensor, num_steps: int, report: Report | None = None) -> Tensor:
        """Return the state (B, *shape) of Gibbs chains from x, after num_steps steps.

        Args:
            report: receives x and the state after each step.
        """


# verb -> its Protocol, in the order in which tables show them
ABILITIES: dict[str, type] = {
    "sample": Samples,
    "encode": Encodes,
    "decode": Decodes,
    "prior": HasPrior,
    "styles": HasStyles,
    "synthesize": Synthesizes,
    "posterior": HasPosterior,
    "log_prob": HasDensity,
    "token_log_probs": ScoresTokens,
    "ode_log_prob": HasODELikelihood,
    "elbo": BoundsDensity,
    "eps_mse": PredictsNoise,
    "iwae": HasIWAE,
    "energy": HasEnergy,
    "log_partition": HasPartition,
    "inpaint": Inpaints,
    "extend": ContinuesSequence,
    "denoise": Denoises,
    "classify": Classifies,
    "restore": Restores,
    "edit": Edits,
    "translate": Translates,
    "forecast": Forecasts,
}


# verb -> its Protocol, of abilities that few models have, or that only one command uses:
# `genlab models` has no column for them
RARE_ABILITIES: dict[str, type] = {
    "bound_terms": SplitsBound,
    "forecast_log_prob": HasForecastDensity,
    "impute": Imputes,
    "trajectory": HasTrajectory,
    "forward_trajectory": HasForwardTrajectory,
    "category": AssignsCategories,
    "gaussian_components": HasGaussianComponents,
    "discriminate": Discriminates,
    "prior_quantiles": HasPriorQuantiles,
}


def abilities(model: object) -> set[str]:
    """Return the verbs that a model, or a model class, implements.

    An instance may withdraw one with `self.log_prob = None`, as a model whose size makes it
    intractable does.
    """
    verbs = (*ABILITIES, *RARE_ABILITIES)
    return {verb for verb in verbs if callable(getattr(model, verb, None))}


def require_model_ability(
    model: object, verb: str, list_models: Callable[[], Iterable[str]] | None = None
) -> None:
    """Refuse a request that needs an ability which the model does not have.

    Args:
        list_models: returns the names of the models that have it; called only if the request is
            refused.

    Raises:
        UserError: the model does not have the ability; the message names models that do.
    """
    if verb in abilities(model):
        return
    names = ", ".join(list_models()) if list_models else ""
    alternatives = f"; models that do: {names}" if names else ""
    raise UserError(f"{type(model).__name__} does not support `{verb}`{alternatives}")
