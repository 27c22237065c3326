"""White shapes on black with five known factors, for measuring disentanglement."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from genlab.data.dataset import Split
from genlab.data.image_dataset import Images
from genlab.data.shuffling import seeded_split_indices
from genlab.errors import UserError
from genlab.spec import Fraction, Positive

# factor -> the number of its values: 20,736 combinations
FACTORS = {"shape": 3, "scale": 6, "orientation": 8, "x": 12, "y": 12}
SHAPES = ("square", "ellipse", "heart")
RENDER_BATCH_SIZE = 1024  # images rendered at once


@dataclass(kw_only=True, eq=False)
class Shapes(Images):
    """Every combination of shape, scale, orientation and position, after dSprites.

    Matthey et al. 2017. Three shapes of equal area with smooth edges; scales 0.5 … 1; orientations
    within a quarter turn, where no shape repeats itself, so that no two combinations look the same.
    The label is the shape.

    Args:
        n: number of combinations, drawn by `split_seed`; None uses all 20,736.
        validation, test: fractions of them that `split_seed` holds out.
    """

    n: Positive | None = None
    validation: Fraction = 0.1
    test: Fraction = 0.1
    name = "shapes"
    commonly_binarized = True
    factor_names = tuple(FACTORS)
    categorical_factors = (0,)

    def __post_init__(self) -> None:
        super().__post_init__()
        combinations = torch.cartesian_prod(*map(torch.arange, FACTORS.values()))  # (20736, 5)
        n, side = self.n or len(combinations), self.side or 32
        if n > len(combinations):
            raise UserError(
                f"dataset.n={n}: there are {len(combinations)} combinations; null uses all"
            )
        sizes = [round(fraction * n) for fraction in (self.test, self.validation)]
        if n <= sum(sizes):
            raise UserError(
                f"dataset.validation={self.validation:g} and dataset.test={self.test:g} leave "
                "nothing to train on"
            )
        test, validation, train, _ = seeded_split_indices(
            len(combinations), [*sizes, n - sum(sizes)], self.split_seed
        )
        parts = {"test": test, "validation": validation, "train": train}
        self._factors = {name: combinations[index] for name, index in parts.items()}
        splits = {
            name: Split(render_shapes(v, side), v[:, 0].clone())
            for name, v in self._factors.items()
        }
        hints = dict.fromkeys(
            splits, f"dataset.validation={self.validation:g}, dataset.test={self.test:g}"
        )
        self.set_image_splits(
            splits,
            shape=(1, side, side),
            num_classes=len(SHAPES),
            class_names=SHAPES,
            hints=hints,
        )

    def factors(self, split: str, n: int | None = None, *, seed: int = 0) -> Tensor:
        values = self._factors[split]
        if split in self.kept:
            values = values[self.kept[split]]
        return values[self.head_indices(split, n, seed=seed)]


def render_shapes(v: Tensor, side: int) -> Tensor:
    """Return the images uint8 (N, 1, side, side) of factors v (N, 5)."""
    # radius of the circle that holds the largest shape, which stays inside the image
    largest = side / 4
    pixel = torch.arange(side) + 0.5
    shape, scale, turn, x, y = (k.view(-1, 1, 1) for k in v.float().unbind(1))
    images = torch.empty(len(v), 1, side, side, dtype=torch.uint8)
    radius = largest * (0.5 + 0.5 * scale / (FACTORS["scale"] - 1))
    angle = turn * (torch.pi / 2 / FACTORS["orientation"])
    x = largest + (side - 2 * largest) * x / (FACTORS["x"] - 1)
    y = largest + (side - 2 * largest) * y / (FACTORS["y"] - 1)
    cos, sin = angle.cos() / radius, angle.sin() / radius
    distances: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
        signed_distance_to_square,
        signed_distance_to_ellipse,
        signed_distance_to_heart,
    )
    for kind, distance in enumerate(distances):
        for i in (shape.flatten() == kind).nonzero().flatten().split(RENDER_BATCH_SIZE):
            right, down = pixel - x[i], pixel.view(-1, 1) - y[i]  # (B, 1, side), (B, side, 1)
            # (B, side, side): coordinates along the shape's axes, in units of its radius
            a = cos[i] * right + sin[i] * down
            b = sin[i] * right - cos[i] * down
            # the fraction of a pixel that a straight edge covers
            coverage = (0.5 - distance(a, b) * radius[i]).clamp_(0, 1)
            images[i, 0] = coverage.mul_(255).round_().to(torch.uint8)
    return images


# Signed distances from the edge, negative inside, of shapes with area 1.74 in the unit circle;
# a points right, b up.


def signed_distance_to_square(a: Tensor, b: Tensor, half: float = 0.66) -> Tensor:
    """Return the signed distance from a square with sides 2 · `half`."""
    return torch.maximum(a.abs(), b.abs()) - half


def signed_distance_to_ellipse(
    a: Tensor, b: Tensor, long: float = 0.95, short: float = 0.583
) -> Tensor:
    """Return the signed distance from an ellipse, exact to first order at the edge.

    It is the level k − 1 over the length of its gradient.
    """
    k = ((a / long).square() + (b / short).square()).sqrt()
    gradient = ((a / long**2).square() + (b / short**2).square()).sqrt() / k.clamp(min=1e-6)
    return (k - 1) / gradient.clamp(min=1e-6)


def signed_distance_to_heart(
    a: Tensor, b: Tensor, half: float = 0.4935, drop: float = 0.219
) -> Tensor:
    """Return the signed distance from a heart.

    A square on its corner, with a disc on the middle of each upper side.
    """
    b = b + drop  # moves the center of mass to the origin
    p, q = (b + a) / 2**0.5, (b - a) / 2**0.5
    # the two discs are mirror images: the nearer one
    discs = ((torch.maximum(p, q) - half).square() + torch.minimum(p, q).square()).sqrt() - half
    return torch.minimum(signed_distance_to_square(p, q, half), discs)
