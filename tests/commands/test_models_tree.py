"""genlab models tree=…: the taxonomy of the recipes, drawn from the abilities of their models."""

from __future__ import annotations

import json

import pytest
from helpers.recipes import RECIPES
from PIL import Image

from genlab.commands.models import density_kind


@pytest.mark.parametrize(
    ("abilities", "kind"),
    [
        ({"sample", "log_prob", "encode"}, "tractable"),
        ({"sample", "elbo", "iwae"}, "variational"),
        ({"sample", "ode_log_prob"}, "variational"),
        ({"sample", "energy", "log_partition", "log_prob"}, "markov chain"),
        ({"sample", "elbo", "log_partition"}, "markov chain"),
        ({"sample", "encode"}, "implicit"),
        ({"translate", "encode"}, "conditional"),
        ({"encode", "decode"}, "codes"),
    ],
)
def test_kind_of_density_follows_from_abilities(abilities, kind):
    assert density_kind(abilities) == kind


def test_tree_has_every_recipe_once_and_overwrites_no_file_of_the_user(genlab, tmp_path):
    path = tmp_path / "tree.png"
    for _ in range(2):  # its own file is replaced
        result = genlab("models", f"tree={path}")
        assert result.code == 0, result.err
    places = json.loads(path.with_suffix(".json").read_text())["models"]
    assert sorted(places) == sorted(RECIPES)
    assert places["realnvp"] == ["explicit density", "tractable", "flow"]
    assert places["vae"] == ["explicit density", "approximate", "variational", "vae"]
    assert places["rbm"] == ["explicit density", "approximate", "Markov chain", "boltzmann"]
    assert places["dcgan"] == ["implicit density", "gan"]
    assert max(map(len, result.out.splitlines())) <= 100 and "dcgan" in result.out
    with Image.open(path) as image:
        assert image.width > image.height > 500
    path.write_bytes(b"mine")
    for tree, words in ((path, "not overwritten"), (tmp_path / "tree.pdf", ".png or .svg")):
        result = genlab("models", f"tree={tree}")
        assert result.code == 2 and words in result.err
    assert path.read_bytes() == b"mine"
