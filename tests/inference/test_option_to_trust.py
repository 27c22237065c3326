"""The command that is proposed for a run with a user's own model trusts the user's package."""

from __future__ import annotations

from torch import nn

from genlab.inference.requirements import option_to_trust
from genlab.model import GenerativeModel


def make_class(module: str, *bases: type) -> GenerativeModel:
    return type("Mine", bases or (GenerativeModel,), {"__module__": module})()


def test_a_users_package_is_named() -> None:
    assert option_to_trust(make_class("my_model.nets")) == " trusted_packages=[my_model]"
    assert option_to_trust(make_class("genlab.models.mine")) == ""


def test_a_class_that_torch_derives_is_not_torchs_own() -> None:
    wrapper = type("FSDPModule", (nn.Module,), {"__module__": "torch.distributed.fsdp"})
    own = type("Own", (GenerativeModel,), {"__module__": "my_model"})
    derived = make_class("torch.distributed.fsdp", wrapper, own)
    assert option_to_trust(derived) == " trusted_packages=[my_model]"
