"""The base class of every model: the optional part of the model contract, with defaults.

A model must have a loss, or a trainer with an update rule for it. What else it can do is a matter
of the abilities that it implements (genlab.abilities). The attributes below describe how an
ability behaves; commands, metrics and trainers read them without asking whether they exist.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from genlab.spec import Batch, DataSpec


class GenerativeModel(nn.Module):
    """A trainable probability distribution; subclasses implement its loss and its abilities.

    A model is built as `Model(spec, **options)`, with the options of its recipe as keywords.
    """

    # The data that the model was built for.
    spec: DataSpec

    # Trained with class labels: `sample`, `log_prob` and others take y (B,).
    conditional: bool = False
    # Trained with captions: `sample` takes the tokens of a prompt as y.
    text_conditional: bool = False

    # Names that `sample(…, sampler=name)` takes; empty if there is only one way to sample.
    samplers: tuple[str, ...] = ()
    # Sampling takes many network evaluations: `sample`, `encode` and `inpaint` take `steps`.
    step_by_step: ClassVar[bool] = False

    # `sample` returns means of p(x|z), without the noise of p(x|z); otherwise it draws items.
    samples_are_means: bool = False

    # The states of `trajectory` that a picture shows are spaced evenly, or ever farther apart.
    trajectory_spacing: ClassVar[Literal["even", "log"]] = "even"
    # The name of the guess of a state, for its row.
    trajectory_guess: ClassVar[str] = "guess of x₀"
    # A sentence about the states, for the caption.
    trajectory_note: ClassVar[str] = ""

    # `prior(n, y)` draws codes of the classes y; otherwise y is ignored.
    conditional_prior: bool = False
    # Values of `gradient`, the estimator of the loss's gradient with respect to a distribution that
    # the model draws from; empty without a choice.
    gradient_estimators: ClassVar[tuple[str, ...]] = ()
    gradient: str = ""

    # `decode` has a gradient with respect to the code.
    differentiable: bool = True
    # The path between two codes whose points stay likely under the prior.
    latent_interpolation: Literal["linear", "spherical"] = "linear"

    # `discriminate` returns the logit of a probability; otherwise the score of a critic.
    discriminates_by_probability: bool = False

    # `translate(…, backward=True)` goes from targets to sources.
    translates_backward: ClassVar[bool] = False
    # `translate` takes images whose sides are multiples of this; other images are padded.
    size_multiple: int = 1

    # `inpaint` takes a number of steps; autoregressive models draw value after value instead.
    inpaints_in_steps: ClassVar[bool] = True
    # `denoise` removes Gaussian noise, whose standard deviation it takes as `sigma`, and no other.
    gaussian_noise_only: ClassVar[bool] = False

    # `forecast` takes many network evaluations for each draw, so that metrics draw less.
    forecasts_in_many_passes: ClassVar[bool] = False

    # `elbo` and `eps_mse` draw `num_terms` timesteps; otherwise they ignore it.
    elbo_over_timesteps: ClassVar[bool] = False
    # `log_prob` includes the logit of the pixels, so it is a density on the open interval only.
    logit_transform: bool = False

    # The loss is not a mean over items: it passes what it needs of the batch to `join_shards`.
    needs_joint_batch: bool = False
    # Set by the trainer while it computes a batch in shards.
    shard_joiner: Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]] | None = None

    # Models tables whose columns are numbers or categories (DataSpec.kind "table").
    takes_tables: ClassVar[bool] = False

    # Can be trained on items with missing values (DataSpec.has_missing), which are NaN.
    takes_missing_values: ClassVar[bool] = False

    # The recipe for images of many gray levels, of a model that is defined for binary data only.
    gray_level_recipe: ClassVar[str] = ""

    @classmethod
    def gray_level_options(cls, spec: DataSpec, options: dict[str, Any]) -> dict[str, Any]:
        """Return the options with which the model suits images that binarization would destroy.

        They replace those of a recipe that binarizes, as {"preprocess.binarize": "none"}. A model
        that is defined for binary data only returns {}.

        Args:
            spec: of the data without binarization.
            options: the section `model` of the config.
        """
        return {}

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return {"loss": scalar to minimize, …}; further entries are logged.

        Models whose trainer has another update rule (GANs, RBMs, EM) need not implement it.
        """
        raise TypeError(
            f"{type(self).__name__} is not trained by gradient descent on a single loss"
        )

    def join_shards(self, *values: Tensor) -> tuple[Tensor, ...]:
        """Return values (B, …) of this batch for all shards of the joint batch (N·B, …).

        A batch that is not computed in shards is returned as it is. See
        `genlab.training.joint_batch`.
        """
        return values if self.shard_joiner is None else self.shard_joiner(values)

    def parameter_groups(self) -> Iterable[Any]:
        """Return the parameters as `torch.optim` takes them; override to set options for some."""
        return self.parameters()

    @property
    def code_choices(self) -> dict[str, slice]:
        """Parts of a code (B, d) that are one-hot categories, by name (InfoGAN's category)."""
        return {}
