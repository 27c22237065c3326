"""White shapes on black whose five factors are known and independent, so that a code can be held against them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from genlab.data.dataset import Split
from genlab.data.image_dataset import Images
from genlab.data.shuffling import cut, permutation
from genlab.errors import UserError
from genlab.spec import Fraction, Positive

FACTORS = {
    "shape": 3,
    "scale": 6,
    "orientation": 8,
    "x": 12,
    "y": 12,
}  # the values that each takes: 20,736 together
SHAPES = ("square", "ellipse", "heart")
CHUNK = 1024  # images drawn at once


@dataclass(kw_only=True, eq=False)
class Shapes(Images):
    """Every combination of shape, scale, orientation and place, after dSprites (Matthey et al. 2017).

    Three shapes of equal area, smooth at their edges; scales 0.5 … 1; orientations within a quarter turn, where no shape
    repeats itself, so that no two combinations look the same. The label is the shape.

    Args:
        n: combinations, drawn by `split_seed`; None: all 20,736.
        validation, test: shares of them that `split_seed` holds out.
    """

    n: Positive | None = None
    validation: Fraction = 0.1
    test: Fraction = 0.1
    name = "shapes"
    factor_names = tuple(FACTORS)
    categorical = (0,)  # the factors whose values have no order

    def __post_init__(self) -> None:
        super().__post_init__()
        every = torch.cartesian_prod(*map(torch.arange, FACTORS.values()))  # (20736, 5)
        n, side = self.n or len(every), self.side or 32
        if n > len(every):
            raise UserError(f"dataset.n={n}: there are {len(every)} combinations; null takes all")
        sizes = [round(share * n) for share in (self.test, self.validation)]
        if n <= sum(sizes):
            raise UserError(
                f"dataset.validation={self.validation:g} and dataset.test={self.test:g} leave nothing to train on"
            )
        parts = cut(len(every), [*sizes, n - sum(sizes)], self.split_seed)
        self._factors = {
            name: every[index]
            for name, index in zip(("test", "validation", "train"), parts[:3], strict=True)
        }
        splits = {
            name: Split(rendered(v, side), v[:, 0].clone()) for name, v in self._factors.items()
        }
        missing = dict.fromkeys(
            splits, f"dataset.validation={self.validation:g}, dataset.test={self.test:g}"
        )
        self.hold_images(splits, shape=(1, side, side), classes=len(SHAPES), missing=missing)

    def factors(self, split: str, n: int | None = None, *, seed: int = 0) -> Tensor:
        """Return the factors (n, 5) int64 of the items that `take` returns for the same arguments, in their order."""
        values = self._factors[split][self.kept.get(split, slice(None))]
        return values[permutation(len(self._held(split)), seed, 0)[:n]]


def rendered(v: Tensor, side: int) -> Tensor:
    """Return the images uint8 (N, 1, side, side) of factors v (N, 5)."""
    largest = (
        side / 4
    )  # radius of the circle that holds the largest shape, which stays inside the image
    at = torch.arange(side) + 0.5
    shape, scale, turn, x, y = (k.view(-1, 1, 1) for k in v.float().unbind(1))
    images = torch.empty(len(v), 1, side, side, dtype=torch.uint8)
    radius = largest * (0.5 + 0.5 * scale / (FACTORS["scale"] - 1))
    angle = turn * (torch.pi / 2 / FACTORS["orientation"])
    x = largest + (side - 2 * largest) * x / (FACTORS["x"] - 1)
    y = largest + (side - 2 * largest) * y / (FACTORS["y"] - 1)
    cos, sin = angle.cos() / radius, angle.sin() / radius
    for kind, distance in enumerate((square, ellipse, heart)):
        for i in (shape.flatten() == kind).nonzero().flatten().split(CHUNK):
            right, down = at - x[i], at.view(-1, 1) - y[i]  # (B, 1, side), (B, side, 1)
            a = (
                cos[i] * right + sin[i] * down
            )  # (B, side, side): the shape's own axes, in units of its radius
            b = sin[i] * right - cos[i] * down
            inside = (0.5 - distance(a, b) * radius[i]).clamp_(
                0, 1
            )  # the share of a pixel that a straight edge covers
            images[i, 0] = inside.mul_(255).round_().to(torch.uint8)
    return images


# Signed distances from the edge, negative inside, of shapes of area 1.74 in the unit circle; a to the right, b up.


def square(a: Tensor, b: Tensor, half: float = 0.66) -> Tensor:
    return torch.maximum(a.abs(), b.abs()) - half


def ellipse(a: Tensor, b: Tensor, long: float = 0.95, short: float = 0.583) -> Tensor:
    """The level k − 1 over the length of its gradient: exact to first order at the edge."""
    k = ((a / long).square() + (b / short).square()).sqrt()
    gradient = ((a / long**2).square() + (b / short**2).square()).sqrt() / k.clamp(min=1e-6)
    return (k - 1) / gradient.clamp(min=1e-6)


def heart(a: Tensor, b: Tensor, half: float = 0.4935, drop: float = 0.219) -> Tensor:
    """A square on its corner, and a disc on the middle of each upper side."""
    b = b + drop  # brings its centre of mass to the origin
    p, q = (b + a) / 2**0.5, (b - a) / 2**0.5
    # the two discs are mirror images: the nearer one
    discs = ((torch.maximum(p, q) - half).square() + torch.minimum(p, q).square()).sqrt() - half
    return torch.minimum(square(p, q, half), discs)
