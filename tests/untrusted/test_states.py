"""Every tensor and number of a loaded checkpoint is checked against what it replaces."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from genlab.builders import factory
from genlab.distributed.device import Device
from genlab.errors import UserError
from genlab.runs.checkpoint_io import read_checkpoint
from genlab.spec import DataSpec
from genlab.training.options import TrainerOptions
from genlab.training.trainer import Trainer
from genlab.untrusted import states
from genlab.untrusted.states import InvalidStateError

SPEC = DataSpec(shape=(1, 4, 4), levels=2, range=(0, 1))
MODEL = {"_target_": "genlab.models.vae.vae.VAE", "hidden": [4], "latent": 2}
ADAM = partial(torch.optim.Adam, lr=1e-3, fused=True)
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": ADAM,
    "amsgrad": partial(torch.optim.AdamW, lr=1e-3, amsgrad=True),
    "sgd": partial(torch.optim.SGD, lr=1e-3),
    "momentum": partial(torch.optim.SGD, lr=1e-3, momentum=0.9),
    "rmsprop": partial(torch.optim.RMSprop, lr=1e-3, momentum=0.9, centered=True),
    "adagrad": partial(torch.optim.Adagrad, lr=1e-3),
    "adadelta": partial(torch.optim.Adadelta, lr=1e-3),
    "adamax": partial(torch.optim.Adamax, lr=1e-3),
    "nadam": partial(torch.optim.NAdam, lr=1e-3),
    "radam": partial(torch.optim.RAdam, lr=1e-3),
    "rprop": partial(torch.optim.Rprop, lr=1e-3),
    "asgd": partial(torch.optim.ASGD, lr=1e-3),
    "adafactor": partial(torch.optim.Adafactor, lr=1e-3),
}


def make_trainer(optimizer: Callable[..., torch.optim.Optimizer] = ADAM) -> Trainer:
    """Return a small trainer after one update, with an EMA."""
    torch.manual_seed(0)
    model = factory.make_model({"model": MODEL}, SPEC)
    options = TrainerOptions(steps=5, batch_size=2, ema_decay=0.9)
    trainer = Trainer(model, optimizer, options, device=Device(name="cpu"))
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 0.1)
    trainer.optimizers["model"].step()
    trainer.global_step = 1
    return trainer


@pytest.fixture
def trainer() -> Trainer:
    """A small trainer."""
    return make_trainer()


def change(state: Any, path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    """Return a copy of a state with another value, which may be a function of the old one."""
    state = copy.deepcopy(state)
    node = state
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value(node[path[-1]]) if callable(value) else value
    return state


# --- states that load -----------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_the_state_of_every_optimizer_loads(optimizer):
    state = copy.deepcopy(make_trainer(optimizer).state_dict())
    fresh = make_trainer(optimizer)
    fresh.load_state_dict(state)
    saved = state["optimizers"]["model"]["state"]
    loaded = fresh.optimizers["model"].state_dict()["state"]
    assert saved.keys() == loaded.keys()
    for number, entry in saved.items():
        for name, value in entry.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(loaded[number][name]))


def test_a_state_of_another_precision_and_device_loads(trainer):
    state = change(
        trainer.state_dict(), ("model",), lambda w: {k: v.double() for k, v in w.items()}
    )
    group = state["optimizers"]["model"]["param_groups"][0]
    group["fused"], group["foreach"], group["capturable"] = None, True, True  # of a GPU
    trainer.load_state_dict(state)
    assert trainer.optimizers["model"].param_groups[0]["fused"] is True


def test_a_state_of_an_older_pytorch_loads(trainer):
    state = copy.deepcopy(trainer.state_dict())
    for entry in state["optimizers"]["model"]["state"].values():
        entry["step"] = 1  # a number then
    del state["optimizers"]["model"]["param_groups"][0]["decoupled_weight_decay"]
    trainer.load_state_dict(state)


def test_parameters_without_a_gradient_have_no_state(trainer):
    state = copy.deepcopy(trainer.state_dict())
    del state["optimizers"]["model"]["state"][0]
    trainer.load_state_dict(state)


def test_a_model_with_masks_of_infinity_loads():
    expected = {"mask": torch.tensor([0.0, -torch.inf]), "w": torch.zeros(2)}
    states.check_weights({k: v.clone() for k, v in expected.items()}, expected, "model")


# --- tensors that do not --------------------------------------------------------------------------

BAD_TENSORS: dict[str, Callable[[Tensor], Any]] = {
    "one number": lambda t: torch.zeros(1),
    "no number": lambda t: torch.zeros(0),
    "another shape": lambda t: torch.zeros(tuple(side + 1 for side in t.shape)),
    "one more axis": lambda t: t[None],
    "integers": lambda t: t.int(),
    "booleans": lambda t: t.bool(),
    "complex": lambda t: t.to(torch.complex64),
    "sparse": lambda t: t.to_sparse(),
    "without memory": lambda t: t.to("meta"),
    "expanded": lambda t: torch.zeros(1).expand(t.shape),
    "overlapping": lambda t: torch.zeros(64).as_strided(t.shape, [1] * t.ndim),
    "quantized": lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
    "nan": lambda t: torch.full_like(t, torch.nan),
    "infinite": lambda t: torch.full_like(t, torch.inf),
    "conjugated": lambda t: t.to(torch.complex64).conj(),
    "a text": lambda t: "x",
    "nothing": lambda t: None,
    "a list": lambda t: t.tolist(),
    "a mapping": lambda t: {"x": t},
}
PLACES = {
    "model": ("model", "encoder.0.weight"),
    "ema": ("ema", "encoder.0.weight"),
    "exp_avg": ("optimizers", "model", "state", 0, "exp_avg"),
    "exp_avg_sq": ("optimizers", "model", "state", 0, "exp_avg_sq"),
    "step": ("optimizers", "model", "state", 0, "step"),
}


def find_weight(state: dict[str, Any], path: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the path with the name of the model's first matrix in the place of an example."""
    if path[0] not in ("model", "ema"):
        return path
    return (path[0], next(name for name, value in state["model"].items() if value.ndim == 2))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("bad", BAD_TENSORS)
def test_a_tensor_that_does_not_fit_is_refused(bad, place, trainer):
    if place == "step" and bad in ("sparse", "expanded", "overlapping", "another shape", "a list"):
        pytest.skip("such a change of a single number is none")
    state = trainer.state_dict()
    state = change(state, find_weight(state, PLACES[place]), BAD_TENSORS[bad])
    with pytest.raises(InvalidStateError, match="its .*") as error:
        trainer.load_state_dict(state)
    assert place.removesuffix("_sq").split("_")[0] in str(error.value) or place in str(error.value)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_small_moment_is_refused_for_every_optimizer(optimizer):
    """A fused kernel would write beyond its end."""
    trainer = make_trainer(OPTIMIZERS[optimizer])
    state = trainer.state_dict()
    entry = state["optimizers"]["model"]["state"].get(0, {})
    for name, value in entry.items():
        if isinstance(value, Tensor) and value.ndim:
            wrong = change(
                state, ("optimizers", "model", "state", 0, name), lambda t: torch.zeros(1)
            )
            with pytest.raises(InvalidStateError, match=name):
                trainer.load_state_dict(wrong)


# --- numbers and names that do not ----------------------------------------------------------------

GROUP = ("optimizers", "model", "param_groups", 0)
STATE = ("optimizers", "model", "state")
BAD_VALUES: list[tuple[tuple[Any, ...], Any]] = [
    ((*GROUP, "lr"), "x"),
    ((*GROUP, "lr"), -1.0),
    ((*GROUP, "lr"), float("nan")),
    ((*GROUP, "lr"), float("inf")),
    ((*GROUP, "lr"), True),
    ((*GROUP, "lr"), None),
    ((*GROUP, "lr"), 2**2000),
    ((*GROUP, "lr"), torch.zeros(1)),
    ((*GROUP, "base_lr"), -1.0),
    ((*GROUP, "base_lr"), "x"),
    ((*GROUP, "betas"), (0.9,)),
    ((*GROUP, "betas"), (0.9, 2.0)),
    ((*GROUP, "betas"), (0.9, "x")),
    ((*GROUP, "betas"), 0.9),
    ((*GROUP, "eps"), -1.0),
    ((*GROUP, "weight_decay"), -1.0),
    ((*GROUP, "weight_decay"), [0.0]),
    ((*GROUP, "amsgrad"), 1),
    ((*GROUP, "maximize"), "x"),
    ((*GROUP, "params"), [0]),
    ((*GROUP, "params"), [99] * 8),
    ((*GROUP, "params"), "x"),
    ((*GROUP, "params", 1), torch.zeros(3)),
    ((*GROUP, "params", 1), True),
    ((*GROUP, "new"), 1),
    (GROUP, "x"),
    (GROUP[:-1], []),
    (GROUP[:-1], {}),
    ((*STATE, 0, "step"), torch.tensor(-1.0)),
    ((*STATE, 0, "step"), -1),
    ((*STATE, 0, "step"), torch.tensor(1e30)),
    ((*STATE, 0, "exp_avg_sq"), lambda t: -t - 1),
    ((*STATE, 0), {"step": torch.tensor(1.0)}),
    ((*STATE, 0), [1]),
    ((*STATE, 0), ""),
    ((*STATE, 0), None),
    ((*STATE, 0), []),
    ((*STATE, 0, "new"), torch.zeros(1)),
    ((*STATE, 99), {}),
    ((*STATE, "x"), {}),
    ((*STATE, -1), {}),
    (STATE, []),
    (("optimizers", "model"), {}),
    (("optimizers", "model"), None),
    (("optimizers",), {}),
    (("optimizers", "other"), {}),
    (("model", "new"), torch.zeros(1)),
    (("model",), {}),
    (("ema",), None),
    (("ema",), {}),
    (("scaler",), {"scale": "x"}),
    (("scaler",), {"scale": -1.0}),
    (("scaler",), {"scale": float("nan")}),
    (("scaler",), {"scale": 0.0}),
    (("step",), -1),
    (("step",), True),
    (("step",), 2**63),
    (("batches_consumed",), -1),
    (("seed",), "x"),
    (("seed",), 2**65),
    (("seconds",), float("nan")),
    (("seconds",), -1.0),
    (("best",), {"value": "x", "step": 0, "since": 0}),
    (("best",), {"value": 0.0, "step": -1, "since": 0}),
    (("best",), {"value": 0.0, "step": 0}),
    (("unlogged_losses",), [{"loss": "x"}]),
    (("unlogged_losses",), [{1: 1.0}]),
    (("per_shard_buffers",), {"x": torch.zeros(1)}),
    (("per_shard_buffers",), []),
]


@pytest.mark.parametrize("case", range(len(BAD_VALUES)), ids=lambda i: str(BAD_VALUES[i])[:60])
def test_a_value_that_does_not_fit_is_refused(case, trainer):
    path, value = BAD_VALUES[case]
    state = copy.deepcopy(trainer.state_dict())
    node = state
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value(node[path[-1]]) if callable(value) else value
    with pytest.raises(InvalidStateError, match="its ") as error:
        trainer.load_state_dict(state)
    assert str(error.value).isprintable() and len(str(error.value)) < 400


def test_names_are_shown_without_control_characters(trainer):
    state = copy.deepcopy(trainer.state_dict())
    state["model"]["\x1b[2J\u202e"] = torch.zeros(1)
    with pytest.raises(InvalidStateError) as error:
        trainer.load_state_dict(state)
    assert str(error.value).isprintable()


# --- files ----------------------------------------------------------------------------------------

NOT_PLAIN: dict[str, Any] = {
    "a sparse tensor": torch.zeros(2, 2).to_sparse(),
    "a tensor without memory": torch.zeros(2, device="meta"),
    "an expanded tensor": torch.zeros(1).expand(10**12),
    "a type": torch.float32,
    "a device": torch.device("cpu"),
    "bytes": b"x",
    "a set": {1, 2},
    "a key of a tuple": {(1, 2): 1},
    "nested": [[[[[[[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]]]]]]],
}


@pytest.mark.parametrize("value", NOT_PLAIN.values(), ids=NOT_PLAIN)
@pytest.mark.parametrize("place", ["model", "x"])
def test_a_checkpoint_has_plain_values_and_dense_tensors_only(value, place, trainer, tmp_path):
    state = {**trainer.state_dict(), place: {"w": value}}
    torch.save(state, tmp_path / "x.pt")
    with pytest.raises(UserError, match=r"x\.pt is unreadable: (its|it is not)"):
        read_checkpoint(tmp_path / "x.pt")


def test_a_checkpoint_with_a_cycle_is_refused(trainer, tmp_path):
    state = dict(trainer.state_dict())
    state["x"] = cycle = []  # type: ignore[var-annotated]
    cycle.append(cycle)
    torch.save(state, tmp_path / "x.pt")
    with pytest.raises(UserError, match="nested too deeply"):
        read_checkpoint(tmp_path / "x.pt")


def test_own_checkpoints_are_plain(trainer, tmp_path: Path):
    state = {**trainer.state_dict(), "model": OrderedDict(trainer.state_dict()["model"])}
    torch.save(state, tmp_path / "x.pt")
    assert read_checkpoint(tmp_path / "x.pt")["step"] == 1


def test_overlap_is_found():
    t = torch.zeros(4, 6)
    assert not any(map(states.overlaps, (t, t.t(), t[::2, ::3], t[:, 2], torch.zeros(3, 0))))
    assert not states.overlaps(torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last))
    assert states.overlaps(t[:1].expand(3, 6)) and states.overlaps(t.as_strided((3, 3), (2, 1)))


def test_probabilities_of_items_are_checked():
    states.check_probabilities(torch.tensor([0.5, 0.0, 2.0]), "weights")
    for wrong in ([-1.0, 2.0], [0.0, 0.0], [float("nan")], [[1.0]], [], [float("inf")]):
        with pytest.raises(InvalidStateError):
            states.check_probabilities(torch.tensor(wrong), "weights")
    with pytest.raises(InvalidStateError):
        states.check_probabilities(nn.Parameter(torch.ones(3)).int(), "weights")
