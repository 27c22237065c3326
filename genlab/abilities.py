"""The verbs that a model may have. A task needs one of them; it never asks for a family.

A Protocol check sees names only: a class has an ability when it has the method. So a submodule is named by a noun
(`encoder`), an ability by a verb (`encode`). Likelihoods are nats a sample, shape (B,), of the data as the dataset gives it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

from genlab.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import Tensor


class Estimate(NamedTuple):
    """A number with how it was had: `tag` is "exact", "bound" or "estimate"; `error` its standard error, if it has one.

    `note` says in words what the number means where a person should be told.
    """

    value: float
    error: float | None
    tag: str
    note: str = ""


@runtime_checkable
class Samples(Protocol):
    def sample(self, n: int, y: Tensor | None = None) -> Tensor:
        """Draw n items (n, *shape), of the classes y (n,) if given, with the global random state."""


@runtime_checkable
class Encodes(Protocol):
    def encode(self, x: Tensor) -> Tensor:
        """Return the code z (B, …) of x (B, *shape), without noise (a posterior's mean)."""


@runtime_checkable
class Decodes(Protocol):
    def decode(self, z: Tensor) -> Tensor:
        """Return the item (B, *shape) that the code z (B, …) stands for, without noise (a likelihood's mean).

        A model whose items have no gradient in z says `differentiable = False`.
        """


@runtime_checkable
class HasStyles(Protocol):
    def styles(self, z: Tensor, *, truncation: float = 1.0) -> Tensor:
        """Return the styles w (B, layers, dim) of codes z (B, …): what each layer of the decoder is told, coarse to fine.

        A truncation below 1 draws them to their mean.
        """


@runtime_checkable
class Synthesises(Protocol):
    def synthesise(self, w: Tensor) -> Tensor:
        """Return the item (B, *shape) of styles w (B, layers, dim), or of one style for all layers (B, 1, dim), without noise."""


@runtime_checkable
class HasPosterior(Protocol):
    def posterior(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance (B, latent) of the Gaussian q(z|x), or of q(z|x,y) of a conditional model."""


@runtime_checkable
class HasPrior(Protocol):
    def prior(self, n: int) -> Tensor:
        """Draw n codes z from the prior, such that `decode(prior(n))` are samples."""


@runtime_checkable
class HasDensity(Protocol):
    def log_prob(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Return the exact log-density or log-probability (B,) of x in nats."""


@runtime_checkable
class BoundsDensity(Protocol):
    def elbo(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Return a random lower bound (B,) of log p(x) in nats."""


@runtime_checkable
class ForetellsNoise(Protocol):
    def noise_error(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Return a random estimate (B,) of the squared error with which the noise on x is foretold, over all noise levels."""


@runtime_checkable
class TightensBound(Protocol):
    def iwae(self, x: Tensor, k: int) -> Tensor:
        """Return the importance-weighted bound (B,) of log p(x) with k draws, in nats."""


@runtime_checkable
class HasEnergy(Protocol):
    def energy(self, x: Tensor) -> Tensor:
        """Return the (free) energy (B,) of x in nats: log p(x) = −energy(x) − log Z."""


@runtime_checkable
class HasPartition(Protocol):
    def log_partition(self) -> Estimate:
        """Return log Z in nats, exact where it can be enumerated, else an estimate with its standard error."""


@runtime_checkable
class Completes(Protocol):
    def complete(self, x: Tensor, known: Tensor) -> Tensor:
        """Return x (B, *shape) with the values where `known` is False drawn anew, given the others."""


@runtime_checkable
class Extends(Protocol):
    def extend(self, x: Tensor, n: int) -> Tensor:
        """Return the sequences x (B, T) with n more tokens (B, T + n), drawn one after another given all before."""


@runtime_checkable
class Denoises(Protocol):
    def denoise(self, x: Tensor) -> Tensor:
        """Return the clean item (B, *shape) that the noisy x (B, *shape) most likely came from."""


@runtime_checkable
class Classifies(Protocol):
    def classify(self, x: Tensor) -> Tensor:
        """Return log p(y|x) (B, classes) in nats of each class y."""


@runtime_checkable
class Restores(Protocol):
    def restore(self, y: Tensor, operator: Callable[[Tensor], Tensor]) -> Tensor:
        """Return x such that operator(x) is y, drawn from the model."""


@runtime_checkable
class Edits(Protocol):
    def edit(self, x: Tensor, strength: float, y: Tensor | None = None) -> Tensor:
        """Return items like x (B, *shape), drawn from the share `strength` of the way to noise, of the classes y if given."""


@runtime_checkable
class EstimatesDensity(Protocol):
    def ode_log_prob(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Return an estimate (B,) of log p(x) in nats, by following an ODE to a law whose density is known."""


@runtime_checkable
class Translates(Protocol):
    def translate(self, cond: Tensor) -> Tensor:
        """Return the target item (B, …) of each source in cond (B, …)."""


ABILITIES: dict[str, type] = {  # verb -> its Protocol, in the order in which tables show them
    "sample": Samples,
    "encode": Encodes,
    "decode": Decodes,
    "prior": HasPrior,
    "styles": HasStyles,
    "synthesise": Synthesises,
    "posterior": HasPosterior,
    "log_prob": HasDensity,
    "ode_log_prob": EstimatesDensity,
    "elbo": BoundsDensity,
    "noise_error": ForetellsNoise,
    "iwae": TightensBound,
    "energy": HasEnergy,
    "log_partition": HasPartition,
    "complete": Completes,
    "extend": Extends,
    "denoise": Denoises,
    "classify": Classifies,
    "restore": Restores,
    "edit": Edits,
    "translate": Translates,
}


def abilities(model: object) -> set[str]:
    """Return the verbs that a model, or a model class, has."""
    return {verb for verb in ABILITIES if callable(getattr(model, verb, None))}


def choices(model: object) -> dict[str, slice]:
    """Return the parts of a model's codes (B, d) that are one-hot choices, by name, as its `choices` says; none without one."""
    return getattr(model, "choices", {})


def need(model: object, verb: str, able: Callable[[], Iterable[str]] = tuple) -> None:
    """Refuse a request that `model` has no verb for.

    Args:
        able: gives the names of the models that have the verb; asked only when the request is refused.

    Raises:
        UserError: the model has no such verb; the message names the models that do.
    """
    if verb in abilities(model):
        return
    names = ", ".join(able())
    raise UserError(
        f"{type(model).__name__} has no {verb}"
        + (f"; models that have it: {names}" if names else "")
    )
