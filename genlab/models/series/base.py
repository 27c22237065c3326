"""The base class of models that draw the future of a series from its past."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from genlab.errors import UserError
from genlab.model import GenerativeModel
from genlab.spec import DataSpec

WindowScale = Literal["none", "window"]
MIN_WINDOW_SCALE = 1e-3  # of the data's deviation; a constant past would divide by 0


class SeriesModel(GenerativeModel):
    """A model of windows: the future x (B, H, C) given cond (B, P + H, C + F).

    Args:
        scale: none: values are as the dataset standardizes them; window: mean and deviation of each
            window's past are removed as well, as a level that drifts requires.

    Raises:
        UserError: the data is not a series.
    """

    def __init__(self, spec: DataSpec, *, scale: WindowScale = "none") -> None:
        super().__init__()
        if spec.kind != "series" or spec.source is None:
            raise UserError(
                f"{type(self).__name__} models series, not {spec.kind} data of shape {spec.shape}; "
                "set dataset=series dataset.path=<file.csv>, or dataset=ar2"
            )
        self.spec = spec
        self.scale = scale
        self.horizon, self.num_columns = spec.shape  # H, C
        window, channels = spec.source.shape
        self.context = window - self.horizon  # P
        self.num_features = channels - self.num_columns  # F
        if self.context < 1 or self.num_features < 0:
            raise UserError(
                f"{type(self).__name__}: windows of {spec.source.shape} do not contain futures of "
                f"{spec.shape}; set dataset.context_steps to 1 or more"
            )

    def split_condition(self, cond: Tensor) -> tuple[Tensor, Tensor]:
        """Return the past (B, P, C) and the features (B, P + H, F) of conditions."""
        return cond[:, : self.context, : self.num_columns], cond[:, :, self.num_columns :]

    def location_and_scale(self, past: Tensor) -> tuple[Tensor, Tensor]:
        """Return what is subtracted from values and what they are divided by, each (B, 1, C)."""
        if self.scale == "none":
            return torch.zeros_like(past[:, :1]), torch.ones_like(past[:, :1])
        variance = past.var(1, correction=0, keepdim=True)
        return past.mean(1, keepdim=True), (variance + MIN_WINDOW_SCALE**2).sqrt()


class LinearOfPast(nn.Module):
    """A linear function of the last values, of their means, and of the features: (B, T, C).

    It starts at 0. Lai et al. 2018, https://arxiv.org/abs/1703.07015, section 3.6, add such a
    function to the output of a network; the means over longer times are those of Corsi 2009,
    https://doi.org/10.1093/jjfinec/nbp001, eq. 8.

    Args:
        lags: number of last values.
        averages: for each mean, over how many of the last values.
    """

    def __init__(
        self, num_columns: int, num_features: int, lags: int, averages: tuple[int, ...]
    ) -> None:
        super().__init__()
        self.lags, self.averages = lags, averages
        self.num_values = max(lags, *averages, 1)
        inputs = num_columns * (lags + len(averages)) + num_features
        self.linear = nn.Linear(inputs, num_columns)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, values: Tensor, features: Tensor) -> Tensor:
        """Return the function for each step after `num_values` values.

        Args:
            values: (B, num_values + T − 1, C), of which the first step sees `num_values`.
            features: (B, T, F) of the steps themselves.
        """
        windows = values.unfold(1, self.num_values, 1)  # (B, T, C, num_values)
        past = [windows[..., self.num_values - self.lags :].flatten(2)]
        past += [windows[..., self.num_values - n :].mean(3) for n in self.averages]
        linear: Tensor = self.linear(torch.cat([*past, features], 2))
        return linear
