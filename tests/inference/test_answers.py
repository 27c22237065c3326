"""Answers: each request has its own files, and nothing that a user made is overwritten."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
from dataclasses import replace
from functools import cache, partial
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from genlab.builders import entrypoints
from genlab.commands.anomaly import OtherData, anomaly
from genlab.commands.classify import classify
from genlab.commands.evaluate import evaluate
from genlab.commands.inpaint import inpaint
from genlab.commands.sample import sample
from genlab.commands.translate import translate
from genlab.config.config_dir import config_folder
from genlab.config.option_docs import read_yaml_comments
from genlab.config.override_keys import is_path_option
from genlab.config.recipes import list_recipes, nearest_recipes_with
from genlab.errors import UserError
from genlab.inference import output_files
from genlab.inference.output_files import CommandRequest
from genlab.untrusted.files import read_json

CVAE = ("model=cvae", "model.latent=4")
AE = ("model=ae", "model.hidden=[]", "model.output=linear", "model.latent=5")
STYLE = ("model=stylegan2", "model.channel_base=32", "model.channel_max=8", "trainer.batch_size=4")
GAN = ("model=gan", "model.latent=8", "model.hidden=[16]")
PIXELS = ("model=pix2pix", "model.width=2", "dataset.operator=noise", "dataset.sigma=0.2")


@cache
def load(folder: Path):
    return entrypoints.load_run({"run": str(folder), "device": {"name": "cpu"}})


def snapshot(folder: Path) -> dict[str, str]:
    """Return the hash of every file in and below a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# --- names ----------------------------------------------------------------------------------------

# (command, run, options, other options): two requests that differ in one thing.
QUESTIONS = [
    ("sample", CVAE, {}, {"label": 3}),
    ("sample", CVAE, {"label": [1, 2]}, {"label": [2, 1]}),
    ("sample", CVAE, {"n": 4}, {"n": 4, "batch_size": 2}),
    ("sample", ("model=ddpm_points", "dataset.n=500"), {"n": 4, "sampler": {"steps": 2}},
     {"n": 4, "sampler": {"steps": 3}}),
    ("reconstruct", AE, {"items": [1]}, {"items": [2]}),
    ("encode", AE, {"n": 5}, {"n": 5, "split": "train"}),
    ("interpolate", AE, {"n": 2, "frames": 3}, {"n": 2, "frames": 3, "pairs": [(0, 1), (2, 3)]}),
    ("traverse", AE, {"frames": 3}, {"frames": 3, "range_sigma": 1.0}),
    ("arithmetic", AE, {"a": 1, "b": 2}, {"a": 1, "b": 2, "n": 900}),
    ("arithmetic", AE, {"group_by": "item", "a": list(range(150))},
     {"group_by": "item", "a": [*range(149), 150]}),
    ("inpaint", CVAE, {"n": 2, "draws": 1, "mask": "half", "steps": 2},
     {"n": 2, "draws": 1, "mask": "half", "half": "top", "steps": 2}),
    ("mix", STYLE, {"rows": 2, "columns": 2}, {"rows": 2, "columns": 2, "cuts": (1, 2)}),
    ("project", CVAE, {"n": 1, "steps": 2, "tries": 1}, {"n": 1, "steps": 3, "tries": 1}),
    ("denoise", ("model=dae",), {"n": 5, "level": 0.1}, {"n": 5, "level": 0.10000001}),
    ("likelihood", CVAE, {"n": 5, "iwae_samples": 2}, {"n": 5, "iwae_samples": 3}),
]  # fmt: skip  # one request a line


@pytest.mark.parametrize(("command", "of", "options", "other"), QUESTIONS)
def test_another_question_has_other_files(command, of, options, other, train_run, tmp_path, capsys):
    """The same request writes the same files; the printed picture is the answer's own."""
    run = load(train_run(*of))
    function = getattr(import_module(f"genlab.commands.{command}"), command)
    out = tmp_path / "out"
    function(run, **options, output_dir=str(out))
    first = snapshot(out)
    assert f"open: {out}" in capsys.readouterr().out
    function(run, **other, output_dir=str(out))
    second = snapshot(out)
    assert first.items() < second.items() and len(second) == 2 * len(first)
    function(run, **options, output_dir=str(out))
    assert snapshot(out) == second
    assert max(map(len, second)) < 160 and all(name == name.lower() for name in second)
    for path in out.glob("*.json"):
        asked = read_json(path)["question"]
        assert asked["command"] == command and asked["runs"][0]["step"] == 2
        assert {"seed", *options} <= asked["options"].keys()


def test_another_run_step_or_data_has_other_files(train_run, tmp_path):
    """Also in one output_dir; a run is recognized by its folder, not by its name."""
    folder = train_run(*AE)
    copy = shutil.copytree(folder, tmp_path / "b" / folder.name)
    reconstruct = import_module("genlab.commands.reconstruct").reconstruct
    moved = dict(load(folder).config["dataset"], split_seed=7)
    runs = [
        load(folder),
        load(copy),
        replace(load(folder), step=3),
        replace(load(folder), config={**load(folder).config, "dataset": moved}),
    ]
    for run in runs:
        reconstruct(run, n=3, output_dir=str(tmp_path / "out"))
    assert len(list((tmp_path / "out").glob("*.json"))) == 4


def test_classify_and_anomaly_name_the_question(train_run, tmp_path):
    run = load(train_run(*AE))
    ask = partial(anomaly, [run], n=5, output_dir=str(tmp_path / "a"))
    fake = [
        OtherData(lambda run: run.dataset, {"_target_": "a", "path": place}) for place in ("x", "y")
    ]
    for options in ({"classes": 3}, {"classes": [3, 4]}, {"classes": 3, "score": "reconstruction"}):
        ask(**options)
    for other in fake:
        ask(other)
    assert len(list((tmp_path / "a").glob("*.json"))) == 5
    run = load(train_run(*CVAE))
    for options in ({"n": 2}, {"n": 2, "score": "bound"}, {"n": 3}):
        classify([run], iwae_samples=2, output_dir=str(tmp_path / "c"), **options)
    assert len(list((tmp_path / "c").glob("*.json"))) == 3


def test_repeated_anomaly_of_several_runs_keeps_each_mean(train_run, tmp_path):
    """`anomaly runs=` overwrote mean.json."""
    runs = [load(train_run(*AE)), load(train_run("model=ae"))]
    for k in (3, 4):
        anomaly(runs, classes=k, n=5, score="reconstruction", output_dir=str(tmp_path))
    means = [read_json(path) for path in tmp_path.glob("mean*.json")]
    assert sorted(mean["question"]["options"]["classes"] for mean in means) == [3, 4]


def ask_sample(**options) -> CommandRequest:
    """Return a request to a run that does not exist."""
    defaults = {"n": 64, "prompt": None, "seed": 0, "sampler": None}
    return CommandRequest.from_options_and_defaults("sample", [], defaults | options, defaults)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"prompt": "a Cat"}, {"prompt": "a cat"}),  # one file on a Mac
        ({"prompt": "кот"}, {"prompt": "кит"}),
        ({"prompt": "../../x"}, {"prompt": "x"}),
        ({"prompt": "a" * 500}, {"prompt": "a" * 501}),
        ({"prompt": "a\nb"}, {"prompt": "a b"}),
        ({"prompt": ["a", "b"]}, {"prompt": ["b", "a"]}),
        ({"prompt": "3"}, {"prompt": 3}),
        ({"prompt": "con"}, {"prompt": "aux."}),
        ({"sampler": {"steps": 10}}, {"sampler": {"steps": 20}}),
        ({"sampler": {"guidance": 1.0000001}}, {"sampler": {"guidance": 1.0000002}}),
        ({"sampler": {"sampler": "ddim"}}, {}),
    ],
)
def test_names_are_short_safe_and_different(one, other, tmp_path):
    names = [ask_sample(**options).output_file_stem("sample", tmp_path) for options in (one, other)]
    assert names[0] != names[1]
    for name in names:
        assert re.fullmatch(r"[a-z0-9._-]{1,120}", name) and Path(name).name == name


def test_options_of_the_machine_do_not_distinguish(train_run, tmp_path):
    """The device is not an option of a request; null options of the sampler are its defaults."""
    run = load(train_run(*CVAE))
    names = {
        CommandRequest.from_command_call(sample, [run], {**OPTIONS, **given}).output_file_stem(
            "sample", run.folder.samples
        )
        for given in ({}, {"sampler": {"name": None}}, {"output_dir": "x"})
    }
    assert names == {"sample_step2_seed0"}


OPTIONS = {
    "n": 64,
    "label": None,
    "prompt": None,
    "seed": 0,
    "batch_size": 256,
    "images": False,
    "output_dir": None,
    "sampler": None,
}


# --- files of the user ----------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["own file", "picture edited", "record edited", "image edited"])
def test_files_of_the_user_are_kept(change, train_run, tmp_path):
    """An answer whose place is taken is written beside."""
    run, out = load(train_run(*CVAE)), tmp_path / "out"
    ask = partial(sample, run, n=4, images=True, output_dir=str(out))
    if change == "own file":
        out.mkdir()
        name = CommandRequest.from_command_call(
            sample, [run], OPTIONS | {"n": 4}, ignore=("images",)
        )
        (out / (name.output_file_stem("sample", out) + ".png")).write_text("mine")
    else:
        ask()
        pattern = {"picture edited": "*.png", "record edited": "*.json", "image edited": "*/*2.png"}
        (path,) = out.glob(pattern[change])
        path.write_bytes(path.read_bytes().replace(b'"n": 4', b'"n": 5') + b" ")
    before = snapshot(out)
    ask()
    after = snapshot(out)
    assert before.items() < after.items() and any("-2" in name for name in after)
    ask()
    assert snapshot(out) == after


def test_failed_answer_leaves_nothing(train_run, tmp_path, monkeypatch):
    run = load(train_run(*CVAE))

    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("genlab.inference.results.write_npz", fail)
    with pytest.raises(OSError, match="No space"):
        sample(run, n=2, output_dir=str(tmp_path))
    assert snapshot(tmp_path) == {}


def test_evaluations_are_kept(train_run, tmp_path):
    """metrics.json is the newest; records of an older genlab and a user's file stay."""
    folder = shutil.copytree(train_run(*CVAE), tmp_path / "run")
    run = load(folder)
    metrics = {"metrics": ["likelihood"], "iwae_samples": 2}
    (folder / "metrics.json").write_text("my notes")
    evaluate(run, n=8, **metrics)
    kept = snapshot(folder / "evaluation")
    assert "my notes" in [p.read_text() for p in (folder / "evaluation").glob("*.aside")]
    old = read_json(folder / "metrics.json")
    del old["question"], old["files"]
    (folder / "metrics.json").write_text(json.dumps(old | {"step": 1}))  # of an older genlab
    evaluate(run, n=9, **metrics)
    assert kept.items() < snapshot(folder / "evaluation").items()
    records = [read_json(path) for path in (folder / "evaluation").glob("*.json")]
    assert sorted((r["step"], r["settings"]["n"]) for r in records) == [(1, 8), (2, 8), (2, 9)]
    assert read_json(folder / "metrics.json")["settings"]["n"] == 9
    before = snapshot(folder / "evaluation")
    evaluate(run, n=9, **metrics)
    assert snapshot(folder / "evaluation") == before


# --- folders of images ----------------------------------------------------------------------------


@pytest.fixture
def photos(tmp_path):
    """A folder with two gray images."""
    for name in ("a", "b"):
        path = tmp_path / "photos" / "sub" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((16, 16), 99, np.uint8)).save(path)
    return path.parent


@pytest.mark.parametrize("command", ["translate", "denoise", "inpaint"])
@pytest.mark.parametrize("place", ["same", "relative", "link", "inside", "around", "slash"])
def test_output_in_the_input_folder_is_refused(command, place, photos, train_run, tmp_path):
    (tmp_path / "link").symlink_to(photos)
    where = {
        "same": photos,
        "relative": os.path.relpath(photos),
        "link": tmp_path / "link",
        "inside": photos / "new" / "out",
        "around": photos.parent,
        "slash": f"{photos}/../sub/",
    }[place]
    task = ("dataset.operator=mask",) if command == "inpaint" else PIXELS[2:]
    run = load(train_run(*PIXELS[:2], *task))
    function = getattr(import_module(f"genlab.commands.{command}"), command)
    before = snapshot(tmp_path)
    with pytest.raises(UserError, match=r"output_dir=.* input_dir=.*give another output_dir="):
        function(run, input_dir=str(photos), output_dir=str(where))
    assert snapshot(tmp_path) == before and not (photos / "new").exists()


def test_folder_of_results_is_written_again_only_by_its_question(photos, train_run, tmp_path):
    run = load(train_run(*PIXELS))
    out = tmp_path / "out"
    ask = partial(translate, run, input_dir=str(photos))
    ask(output_dir=str(out))
    first = snapshot(out)
    assert sorted(first) == ["a.png", "b.png", "translate.json"]
    ask(output_dir=str(out))
    assert snapshot(out) == first
    with pytest.raises(UserError, match=r"contains a\.png.*give another folder"):
        ask(seed=1, output_dir=str(out))
    shutil.copytree(photos, tmp_path / "mine")
    with pytest.raises(UserError, match=r"contains a\.png"):
        ask(output_dir=str(tmp_path / "mine"))
    assert snapshot(tmp_path / "mine") == snapshot(photos) and snapshot(out) == first
    (out / "b.png").write_bytes(b"painted over")
    with pytest.raises(UserError, match=r"contains b\.png"):
        ask(output_dir=str(out))


def test_default_folder_of_results_is_new_for_another_question(photos, train_run, tmp_path):
    """Folders of the same name in other places, and other seeds."""
    folder = shutil.copytree(train_run(*PIXELS), tmp_path / "run")
    other = shutil.copytree(photos, tmp_path / "else" / photos.name)
    for place, seed in ((photos, 0), (other, 0), (photos, 1), (photos, 0)):
        translate(load(folder), input_dir=str(place), seed=seed)
    assert len(list((folder / "samples").glob("translate_*/translate.json"))) == 3


def test_interrupted_folder_of_results_is_continued(photos, train_run, tmp_path, monkeypatch):
    run = load(train_run("model=pix2pix", "model.width=2", "dataset.operator=mask"))
    real, calls = import_module("genlab.viz.item_pictures").write_image_as_png, []

    def interrupt(image, path):
        calls.append(path)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(image, path)

    monkeypatch.setattr("genlab.viz.item_pictures.write_image_as_png", interrupt)
    ask = partial(inpaint, run, input_dir=str(photos), draws=1, output_dir=str(tmp_path / "out"))
    with pytest.raises(KeyboardInterrupt):
        ask()
    ask()
    assert [path.name for path in calls] == ["a.png", "b.png", "a.png", "b.png"]


# --- output files and pages -----------------------------------------------------------------------


def test_output_file_of_the_user_is_refused(genlab, photos, tmp_path):
    ask = ("evaluate", f"samples={photos}", f"truth={photos}")
    assert genlab(*ask, "output_file=found.json").code == 0
    first = (tmp_path / "found.json").read_bytes()
    assert genlab(*ask, "output_file=found.json").code == 0
    error = genlab(*ask, "crop=1", "output_file=found.json").error
    assert "another question" in error and "give another name" in error
    assert (tmp_path / "found.json").read_bytes() == first
    (tmp_path / "mine.json").write_text("{}")
    assert "a file of yours" in genlab(*ask, "output_file=mine.json").error
    assert "is a folder" in genlab(*ask, "output_file=photos").error
    assert "a file of yours" in genlab(*ask, "output_file=photos/sub/a.png").error
    assert (tmp_path / "mine.json").read_text() == "{}"


def test_run_folder_with_files_of_the_user_is_refused(genlab, tmp_path):
    """`train out=` would replace config.yaml, and delete old checkpoints/step_*.pt."""
    short = ("train", "model=pca", "device=cpu")
    for name in ("config.yaml", "stats.jsonl", "reals.png", "checkpoints/step_000000001.pt"):
        path = tmp_path / "mine" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
        assert f"contains {name}" in genlab(*short, "out=mine").error
        assert [p.read_text() for p in (tmp_path / "mine").rglob("*") if p.is_file()] == ["mine"]
        shutil.rmtree(tmp_path / "mine")
    (tmp_path / "mine").write_text("mine")
    assert "is a file" in genlab(*short, "out=mine").error


@pytest.mark.parametrize("out", ["photos", "photos/new", "./photos/sub"])
def test_run_in_the_folder_of_its_data_is_refused(out, genlab, photos, tmp_path):
    before = snapshot(tmp_path)
    data = ("dataset=image_folder", "dataset.path=photos", "dataset.size=8")
    error = genlab("train", "model=pca", *data, f"out={out}", "device=cpu").error
    assert f"out={out.removeprefix('./')} is in the folder dataset.path=photos" in error
    assert snapshot(tmp_path) == before


# --- paths ----------------------------------------------------------------------------------------


def path_options() -> list[tuple[str, str]]:
    """Return every option whose comment in the shipped YAML files speaks of a file or a folder."""
    found = set()
    for path in config_folder().rglob("*.yaml"):
        named = {
            option.rpartition(".")[2]
            for option, meaning in read_yaml_comments(path).items()
            if re.search(r"\b(file|folder|checkpoint)s?\b", meaning)
        }
        config = yaml.safe_load(path.read_text()) if named else None
        for name in named:
            value = config.get(name, "") if isinstance(config, dict) else ""
            if value is None or isinstance(value, str):
                found.add((path.name, name))
    return sorted(found)


# Options whose comments only mention files.
NOT_PATHS = {
    *("direction", "crop", "save_every", "keep_checkpoints", "monitor", "resize", "encoding"),
    *("file_range", "split_folders", "sweep", "dir", "subdir", "output_subdir", "steps"),
}


@pytest.mark.parametrize(("file", "option"), path_options())
def test_options_of_files_and_folders_expand_the_home_folder(file, option):
    assert is_path_option(option) or option in NOT_PATHS, f"{file}: {option}"


def test_home_folder_is_expanded_everywhere(genlab, train_run, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(train_run(*CVAE), tmp_path / "my run")
    ask = ("sample", "n=2", "device=cpu")
    assert genlab(*ask, "run=~/my run", "output_dir=~/répertoire").code == 0
    assert list((tmp_path / "répertoire").glob("*.png"))
    compared = genlab("compare", "runs=['~/my run']", "evaluate=false", "output_dir=~/page")
    assert compared.code == 0 and (tmp_path / "page/compare.html").exists(), compared.err
    assert "~" not in genlab("classify", "runs=[~/no]").error.replace("~/no", "~", 1)
    trained = genlab("train", "resume=~/my run", "trainer.steps=3", "device=cpu")
    assert trained.code == 0 and trained.out.splitlines()[-1] == (
        f"next: genlab sample 'run={tmp_path}/my run'"
    )
    assert not (tmp_path / "~").exists()


@pytest.mark.parametrize(
    ("typed", "value"),
    [
        ("out=~/a", "~/a"),
        ("dataset.path=фото", "фото"),
        ("runs=[~/a,b c, é]", ["~/a", "b c", "é"]),
        ("a={p:~/x,q:1}", {"p": "~/x", "q": 1}),
        ("out=runs/lr=0.1", "runs/lr=0.1"),
        ("prompt=a red square!", "a red square!"),
        ("out='~/a, b'", "~/a, b"),
        ("trainer.lr=1e-3", 1e-3),
    ],
)
def test_values_that_hydra_takes_only_in_quotes_need_none(typed, value):
    from hydra.core.override_parser.overrides_parser import OverridesParser

    from genlab.cli.hydra_args import quote_special_values

    (word,) = quote_special_values([typed])
    assert OverridesParser.create().parse_override(word).value() == value


# --- models in refusals ---------------------------------------------------------------------------


def test_refusals_name_a_few_models_of_the_same_kind(genlab, train_run):
    kinds = {recipe.name: recipe.kind for recipe in list_recipes()}
    for kind in ("image", "points"):
        names = nearest_recipes_with("sample", kind)
        assert len(names) == 6 and names[-1] == "…"
        assert {kinds[name] for name in names[:-1]} == {kind}
    error = genlab("colorize", f"run={train_run(*CVAE)}", "device=cpu").error
    named = error.rpartition("models that do: ")[2].split(", ")
    assert len(named) <= 6 and {kinds[name] for name in named if name != "…"} == {"image"}


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("arithmetic a=7 b=1 c=0", "group_by=draw"),
        ("interpolate endpoints=data n=1", "endpoints=prior"),
        ("reconstruct", "genlab project"),
        ("encode", "genlab project"),
    ],
)
def test_refusals_offer_what_a_gan_can_do(words, offered, genlab, train_run):
    command, *options = words.split()
    run = train_run(*GAN)
    assert offered in genlab(command, f"run={run}", "device=cpu", *options).error
    if "=" in offered:  # the remedy works
        kept = [word for word in options if not word.startswith(offered.partition("=")[0])]
        done = genlab(command, f"run={run}", "device=cpu", "output_dir=x", offered, *kept)
        assert done.code == 0, done.err


def test_train_says_what_to_type_next(genlab, tmp_path):
    for model, command in (("kmeans", "reconstruct"), ("pca", "sample")):
        done = genlab("train", f"model={model}", f"out=a, {model}", "device=cpu")
        words = done.out.splitlines()[-1]
        assert words.startswith(f"next: genlab {command} "), done.out
        again = genlab(*shlex.split(words)[2:], "n=4", "device=cpu")
        assert again.code == 0, again.err


def test_checksum_of_a_folder_sees_every_file(tmp_path):
    for name in ("a", "b/c"):
        before = output_files.file_checksum(tmp_path)
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
        assert output_files.file_checksum(tmp_path) != before
