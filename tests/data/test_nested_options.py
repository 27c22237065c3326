"""Datasets inside of others: paths of their options in messages, and groups that replace them."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from genlab.builders.factory import make_dataset
from genlab.config.foreign_options import drop_foreign_options
from genlab.config.instantiate import locate_options
from genlab.data.image_folder import ImageFolder
from genlab.errors import UserError

FOLDER = "genlab.data.image_folder.ImageFolder"
WRAPPERS = {
    "pairs": {"_target_": "genlab.data.degraded_pairs.Pairs", "operator": "edges"},
    "superres": {"_target_": "genlab.data.degraded_pairs.Pairs", "operator": "downsample"},
    "captions": {
        "_target_": "genlab.data.captions.Captions",
        "class_names": ["a"],
        "templates": ["{}"],
        "heldout_templates": [],
    },
    "moving_mnist": {"_target_": "genlab.data.video.MovingMNIST"},
}


@pytest.fixture
def photos(tmp_path) -> Path:
    """Photographs of mixed sizes, one of them small, and a file that is none."""
    folder = tmp_path / "photos"
    folder.mkdir()
    noise = np.random.default_rng(0)
    for i, (width, height) in enumerate([(24, 16), (16, 30), (20, 20), (40, 17), (8, 8), (18, 25)]):
        pixels = noise.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    (folder / "broken.png").write_bytes(b"nothing")
    return folder


def wrap(wrapper: str, path: Path, base: dict, outer: dict | None = None) -> dict:
    inner = {"_target_": FOLDER, "path": str(path)} | base
    return {"dataset": WRAPPERS[wrapper] | (outer or {}) | {"base": inner}}


# --- messages -------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "dataset.base.crop=center dataset.base.size="),
        ({"path": None}, "dataset.base.path=<folder>"),
        ({"path": "absent"}, "dataset.base.path=absent: no such folder"),
        ({"crop": "center"}, "set their side in pixels, as dataset.base.size="),
        ({"crop": "stretch"}, "as dataset.base.size="),
        ({"strict": True}, "dataset.base.strict=false"),
        ({"validation": 0.6, "test": 0.6, "size": 8, "crop": "pad"}, "dataset.base.validation=0.6"),
        ({"direction": "AtoB"}, "unknown option 'dataset.base.direction'"),
        ({"size": "large"}, "dataset.base.size=large: input should be"),
        ({"range": [1, 0], "size": 8, "crop": "pad"}, "dataset.base.range=[1,0] is empty"),
        ({"classes": [1], "size": 8, "crop": "pad"}, "dataset.base.classes and dataset.base"),
    ],
)
def test_options_of_an_inner_dataset_have_their_whole_path(wrapper, options, words, photos):
    with pytest.raises(UserError) as error:
        make_dataset(wrap(wrapper, photos, options))
    assert words in str(error.value)
    assert not re.search(r"(?<![\w.@])dataset\.(crop|size|path|strict)\b", str(error.value))


def test_late_messages_have_the_whole_path(photos):
    options = {"size": 8, "crop": "pad", "validation": 0.0, "cache_in_memory": False, "workers": 0}
    data = make_dataset(wrap("pairs", photos, options))
    with pytest.raises(UserError, match=r"no validation items: set dataset\.base\.validation"):
        data.head("validation")
    with pytest.raises(UserError, match=r"dataset\.base\.cache_in_memory=true"):
        data.raw_items_and_labels("train")
    (photos / "2.png").write_bytes((photos / "broken.png").read_bytes())
    data = make_dataset(wrap("pairs", photos, options))
    data.splits["train"].x.unreadable.strict = True
    with pytest.raises(UserError, match=r"dataset\.base\.strict=false"):
        data.splits["train"].x.unreadable.add(photos / "3.png", "cut short")


@pytest.mark.parametrize(
    ("text", "located"),
    [
        ("set dataset.crop=center", "set dataset.base.crop=center"),
        ("dataset.path=/a/dataset.size: absent", "dataset.base.path=/a/dataset.size: absent"),
        ("dataset@dataset.base=cifar10", "dataset@dataset.base=cifar10"),
        ("use dataset=table", "use dataset@dataset.base=table"),
        ("set dataset.other=1", "set dataset.other=1"),
        ("(dataset.size, dataset.crop)", "(dataset.base.size, dataset.base.crop)"),
    ],
)
def test_only_options_of_the_inner_dataset_are_located(text, located):
    assert locate_options(text, ImageFolder, "dataset.base") == located


# --- groups that replace those of an experiment ---------------------------------------------------


def test_options_of_a_replaced_group_are_left_out():
    config = {
        "dataset": {
            "base": {"_target_": FOLDER, "path": "photos", "direction": "BtoA", "jitter": 0}
        },
        "optimizer": {"_target_": "torch.optim.SGD", "lr": 0.1, "betas": [0.5, 0.9]},
        "model": {"_target_": "genlab.models.vae.vae.VAE", "latnt": 3},
    }
    overrides = ["dataset@dataset.base=image_folder", "optimizer=sgd", "dataset.base.jitter=1"]
    kept, notes = drop_foreign_options(config, overrides)
    assert kept["dataset"]["base"] == {"_target_": FOLDER, "path": "photos", "jitter": 0}, (
        "what is typed is kept, so that it is refused"
    )
    assert kept["optimizer"] == {"_target_": "torch.optim.SGD", "lr": 0.1}
    assert kept["model"] == config["model"], "its group was not replaced"
    assert notes == [
        "dataset.base.direction: left out, because dataset@dataset.base=image_folder does not have "
        "it",
        "optimizer.betas: left out, because optimizer=sgd does not have it",
    ]
    assert drop_foreign_options(config, []) == (config, [])


def test_a_part_that_the_dataset_lacks_is_explained(genlab):
    result = genlab("train", "experiment=srresnet_x2", "dataset=image_folder", "dataset.path=x")
    assert "give dataset@dataset.base=<dataset> instead of dataset=<dataset>" in result.error


# --- photographs for super-resolution -------------------------------------------------------------


def test_srresnet_trains_on_photographs_of_mixed_sizes(genlab, photos):
    command = ("train", "experiment=srresnet_x2", "dataset@dataset.base=image_folder")
    small = ("model.width=4", "model.num_blocks=1", "trainer.steps=2", "device=cpu", "out=run")
    options = (f"dataset.base.path={photos}", "dataset.crop_size=16", "dataset.base.validation=0.2")
    result = genlab(*command, *options, *small)
    assert result.code == 0, result.err
    assert "dataset.base.direction, dataset.base.jitter: left out" in result.err
    for words in (
        "patches of 16×16 from 5 images of 24×16 to 40×17, each at its own size",
        "left out, smaller than the patches of 16×16: 1: 4.png",
        "left out, unreadable: 1: broken.png",
    ):
        assert words in result.out + result.err
    folder = ("run=run", f"input_dir={photos}", "downsample=true", "output_dir=made", "device=cpu")
    result = genlab("superres", *folder)
    assert result.code == 0, result.err
    assert Image.open(photos.parent / "made" / "3.png").size == (40, 16)
    assert genlab("superres", "run=run", "n=1", "split=validation", "device=cpu").code == 0
    assert genlab("evaluate", "run=run", "n=4", "split=train", "device=cpu").code == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"crop_size": 15}, "dataset.crop_size=15 is not a multiple of dataset.factor=2; set "
                            "dataset.crop_size=14"),
        ({"crop_size": 64}, "dataset.crop_size=64: none of the 6 images of 8×8 to 40×17"),
        ({}, "or cut squares at their own size: dataset.crop_size="),
    ],
)  # fmt: skip  # each case on its lines
def test_patches_that_do_not_fit_name_the_option(options, words, photos):
    with pytest.raises(UserError, match=re.escape(words)) as error:
        make_dataset(wrap("superres", photos, {}, options))
    if "set dataset.crop_size=" in words:
        return
    remedy = int(re.findall(r"dataset\.crop_size=(\d+)", str(error.value))[-1])
    data = make_dataset(wrap("superres", photos, {}, {"crop_size": remedy}))
    assert data.spec.shape == (3, remedy, remedy)
