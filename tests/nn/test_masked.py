"""Masked networks: the Jacobian shows what each output depends on."""

from __future__ import annotations

import pytest
import torch

from genlab.nn.masked import MaskedMLP


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("hidden", [(), (40,), (40, 40, 40)])
@pytest.mark.parametrize("order", [None, [4, 3, 2, 1, 0], [2, 0, 4, 1, 3]])
def test_outputs_depend_on_earlier_inputs_only(order, hidden, residual):
    torch.manual_seed(0)
    place = torch.arange(5) if order is None else torch.tensor(order)
    order = None if order is None else place
    net = MaskedMLP(5, hidden, 3, order=order, activation="tanh", residual=residual).double()
    jacobian = torch.autograd.functional.jacobian(
        lambda x: net(x[None])[0], torch.randn(5).double()
    )  # (5, 3, 5)
    depends = place[:, None] > place
    assert torch.equal(jacobian.abs() > 0, depends[:, None].expand(5, 3, 5))


def test_network_without_hidden_layers_is_strictly_triangular():
    net = MaskedMLP(4, (), 2).double()
    x = torch.randn(3, 4).double()
    weight = net.layers[0].weight.view(4, 2, 4) * torch.ones(4, 4).double().tril(-1)[:, None]
    torch.testing.assert_close(
        net(x), torch.einsum("dpi,bi->bdp", weight, x) + net.layers[0].bias.view(4, 2)
    )


def test_residual_layers_add_to_the_previous_layer():
    plain, residual = (MaskedMLP(4, (8, 8), 1, residual=r).double() for r in (False, True))
    residual.load_state_dict(plain.state_dict())
    torch.nn.init.zeros_(residual.layers[1].weight), torch.nn.init.zeros_(residual.layers[1].bias)
    x = torch.randn(3, 4).double()
    first = residual.layers[0](x)
    torch.testing.assert_close(residual(x)[..., 0], residual.layers[2](residual.activation(first)))


def test_residual_layers_of_different_widths_are_refused():
    with pytest.raises(ValueError, match="equal width"):
        MaskedMLP(4, (8, 9), 1, residual=True)
