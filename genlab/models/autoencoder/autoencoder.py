"""The deep autoencoder of Hinton & Salakhutdinov 2006, https://doi.org/10.1126/science.1127647."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from genlab.errors import UserError
from genlab.nn.conv import ConvDecoder, ConvEncoder, halves
from genlab.nn.mlp import MLP, Activation
from genlab.spec import Batch, Positive, Spec


def check(spec: Spec, network: str, hidden: tuple[int, ...], output: str) -> None:
    """Refuse data whose squared error has no unit that can be compared, or that the network cannot take."""
    name = f"{spec.kind} data of shape {spec.shape}"
    if spec.kind not in ("image", "points"):
        raise UserError(f"ae takes images or points, and this is {name}")
    if spec.kind == "image" and tuple(spec.range) != (0, 1):
        raise UserError(
            f"ae measures pixels in [0, 1], and this data is in {list(spec.range)}; set dataset.range=[0,1]"
        )
    if spec.kind == "points" and output == "logistic":
        raise UserError(
            "ae's logistic output lies between 0 and 1 and points do not; set model.output=linear"
        )
    if network == "conv" and not (hidden and halves(spec.shape, len(hidden))):
        raise UserError(
            f"ae's network conv halves an image {len(hidden)} times (once for each of model.hidden, at least one), "
            f"and this is {name}; set model.network=mlp or another model.hidden"
        )


class Autoencoder(nn.Module):
    """A network through a code of `latent` linear units and back; it is no distribution, so it has no prior and no samples.

    Args:
        network: "mlp", or "conv": stride-2 convolutions, one for each of `hidden`.
        hidden: widths (channels) of the encoder's layers; the decoder mirrors them. Empty with a linear output, the
            optimum spans the same subspace as PCA's first `latent` components (Baldi & Hornik 1989).
        latent: dimension of the code z.
        output: "logistic" for values between 0 and 1, or "linear".

    Raises:
        UserError: images not in [0, 1], or a network or output that does not fit the data.
    """

    def __init__(
        self,
        spec: Spec,
        *,
        network: Literal["mlp", "conv"] = "mlp",
        hidden: tuple[Positive, ...] = (1000, 500, 250),
        latent: Positive = 30,
        activation: Activation = "relu",
        output: Literal["logistic", "linear"] = "logistic",
    ) -> None:
        super().__init__()
        check(spec, network, hidden, output)
        self.spec, self.output = spec, output
        if network == "mlp":
            self.encoder = nn.Sequential(
                nn.Flatten(), *MLP(spec.dim, hidden, latent, activation=activation)
            )
            self.decoder = MLP(latent, hidden[::-1], spec.dim, activation=activation)
        else:
            self.encoder = ConvEncoder(spec.shape, hidden, latent, activation=activation)
            decoder = ConvDecoder(latent, hidden[::-1], spec.shape, activation=activation)
            self.decoder = nn.Sequential(*decoder, nn.Flatten())

    def reconstruction(self, z: Tensor) -> Tensor:
        """Return x̂ (B, D) of the code z (B, latent)."""
        out = self.decoder(z)
        return out.sigmoid() if self.output == "logistic" else out

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the squared error of an item's reconstruction, averaged over the batch, in squared data units."""
        return {"loss": squared_error(batch.x, self.reconstruction(self.encode(batch.x)))}

    # --- abilities --------------------------------------------------------------------------------------------------

    def encode(self, x: Tensor) -> Tensor:
        """Return the code z (B, latent) of x (B, *shape)."""
        return self.encoder(x)

    def decode(self, z: Tensor) -> Tensor:
        """Return the reconstruction (B, *shape) of a code z (B, latent); a linear output's is not cut to the range."""
        return self.reconstruction(z).unflatten(1, self.spec.shape)


# Figure 2 of the paper gives Σ_i (x_i − x̂_i)², averaged over pictures of pixels in [0, 1].
def squared_error(x: Tensor, back: Tensor) -> Tensor:
    """Return Σ (x − x̂)² over the D values of an item, averaged over items x (B, *shape) and x̂ (B, D)."""
    return (x.flatten(1) - back).square().sum(1).mean()
