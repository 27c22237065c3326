"""Deep autoencoder: Hinton & Salakhutdinov 2006, https://doi.org/10.1126/science.1127647."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from genlab.errors import UserError
from genlab.model import GenerativeModel
from genlab.nn.conv import ConvDecoder, ConvEncoder, can_halve
from genlab.nn.mlp import MLP, Activation
from genlab.spec import Batch, DataSpec, Positive


def validate_spec(spec: DataSpec, network: str, hidden: tuple[int, ...], output: str) -> None:
    """Raise UserError if the network or output does not fit the data.

    Images must be in [0, 1], so that squared errors are comparable.
    """
    data = f"{spec.kind} data of shape {spec.shape}"
    if spec.kind not in ("image", "points"):
        raise UserError(f"Autoencoder supports images and points, but this dataset has {data}")
    if spec.kind == "image" and tuple(spec.range) != (0, 1):
        raise UserError(
            "Autoencoder measures the squared error of pixels in [0, 1], but this data is in "
            f"{list(spec.range)}; set preprocess.range=[0,1]"
        )
    if spec.kind == "points" and output == "logistic":
        raise UserError(
            "model.output=logistic is limited to values between 0 and 1, but points are not; "
            "set model.output=linear"
        )
    if network == "conv" and not (hidden and can_halve(spec.shape, len(hidden))):
        raise UserError(
            f"model.network=conv halves an image {len(hidden)} times (once per entry of "
            f"model.hidden, at least once), but this dataset has {data}; "
            "set model.network=mlp or another model.hidden"
        )


class Autoencoder(GenerativeModel):
    """An encoder and a decoder with a bottleneck of `latent` linear units.

    It does not define a distribution, so it has neither a prior nor samples.

    Args:
        network: "mlp", or "conv" with one stride-2 convolution per entry of `hidden`.
        hidden: widths (channels) of the encoder's layers; the decoder mirrors them. If it is empty
            and the output is linear, the optimum spans the same subspace as the first `latent`
            principal components (Baldi & Hornik 1989).
        latent: dimension of the code z.
        output: "logistic" for values between 0 and 1, or "linear".

    Raises:
        UserError: images are not in [0, 1], or the network or the output does not fit the data.
    """

    encoder: nn.Sequential
    decoder: nn.Sequential

    def __init__(
        self,
        spec: DataSpec,
        *,
        network: Literal["mlp", "conv"] = "mlp",
        hidden: tuple[Positive, ...] = (1000, 500, 250),
        latent: Positive = 30,
        activation: Activation = "relu",
        output: Literal["logistic", "linear"] = "logistic",
    ) -> None:
        super().__init__()
        validate_spec(spec, network, hidden, output)
        self.spec, self.output = spec, output
        if network == "mlp":
            encoder = MLP(spec.dim, hidden, latent, activation=activation)
            self.encoder = nn.Sequential(nn.Flatten(), *encoder)
            self.decoder = MLP(latent, hidden[::-1], spec.dim, activation=activation)
        else:
            self.encoder = ConvEncoder(spec.shape, hidden, latent, activation=activation)
            decoder = ConvDecoder(latent, hidden[::-1], spec.shape, activation=activation)
            self.decoder = nn.Sequential(*decoder, nn.Flatten())

    def decode_flat(self, z: Tensor) -> Tensor:
        """Return the flat reconstruction x̂ (B, D) of the code z (B, latent)."""
        out = self.decoder(z)
        return out.sigmoid() if self.output == "logistic" else out

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the squared error of the reconstruction per item, averaged over the batch.

        It is in squared data units.
        """
        return {
            "loss": reconstruction_squared_error(batch.x, self.decode_flat(self.encode(batch.x)))
        }

    # --- abilities --------------------------------------------------------------------------------

    def encode(self, x: Tensor, *, steps: int | None = None) -> Tensor:
        """Return the code z (B, latent) of x (B, *shape)."""
        return self.encoder(x)

    def decode(self, z: Tensor) -> Tensor:
        """Return the reconstruction (B, *shape) of a code z (B, latent).

        A linear output is not clamped to the range.
        """
        return self.decode_flat(z).unflatten(1, self.spec.shape)


# Figure 2 of the paper reports Σ_i (x_i − x̂_i)², averaged over images with pixels in [0, 1].
def reconstruction_squared_error(x: Tensor, reconstruction: Tensor) -> Tensor:
    """Return Σ (x − x̂)² over the D values of an item, averaged over the batch.

    Args:
        x: (B, *shape).
        reconstruction: x̂ (B, D).
    """
    return (x.flatten(1) - reconstruction).square().sum(1).mean()
