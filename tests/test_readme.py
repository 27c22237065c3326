"""Every command that the README and the recipes show works as it stands there."""

from __future__ import annotations

import importlib
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.cli_runner import REPOSITORY, run_here
from helpers.recipes import CONFIGS
from PIL import Image

from genlab.commands.translate import of_folder
from genlab.models.boltzmann import rbm
from genlab.spec import Spec

README = (REPOSITORY / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.S | re.M)
COMMANDS = [
    line.split("#")[0].strip() for kind, text in BLOCKS if not kind for line in text.splitlines()
]
TRAINS = [
    c for c in COMMANDS if c.startswith("genlab train") and "--help" not in c and "resume=" not in c
]
HEADERS = sorted(
    {
        match.group().strip()
        for path in CONFIGS.rglob("*.yaml")
        for line in path.read_text().splitlines()
        if "…" not in line  # stands for a folder of the reader's
        for match in re.finditer(r"(?<=# )genlab train (?:[\w/.=\[\],@+-]+ ?)+", line)
    }
    | {
        part
        for row in re.findall(r"`(genlab train [^`…<]*=[^`…<]*)`", README)
        for part in row.split(" && ")
    }
)
# So that minutes become seconds; what the command says still wins over the recipe's own values in the same way.
SMALL = (
    "trainer.steps=2",
    "trainer.batch_size=8",
    "trainer.preview_every=0",
    "device=cpu",
    "device.compile=false",
)
# What a command says and what is as good for a test, where the number alone makes it long.
LESS = {
    "trainer.steps=30000": "trainer.steps=4",
    "trainer.pairs=2000": "trainer.pairs=16",
    "n=20": "n=4",
}


def words(command: str) -> list[str]:
    return [
        w for w in shlex.split(command)[1:] if w != "device=cuda"
    ]  # machines without a GPU test this too


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A newcomer's folder: the model of the README's last section lies in it."""
    here = tmp_path_factory.mktemp("readme")
    model, recipe = [text for kind, text in BLOCKS if kind in ("python", "yaml")]
    (here / "mine.py").write_text(model)
    (here / "confs" / "model").mkdir(parents=True)
    (here / "confs" / "model" / "mine.yaml").write_text(recipe)
    noise = np.random.default_rng(0)
    np.savez(
        here / "elsewhere.npz", x=noise.integers(0, 256, (200, 8, 8, 1), dtype=np.uint8)
    )  # drawn by other programs
    for name in ("restored", "originals"):
        (here / name).mkdir()
        Image.fromarray(noise.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(
            here / name / "a.png"
        )
    return here


def test_the_readme_opens_with_the_two_commands():
    assert [c.split()[0] for c in COMMANDS[:2]] == ["scripts/demo.sh", "scripts/test.sh"]


@pytest.mark.parametrize(
    "command", [c for c in dict.fromkeys([*TRAINS, *HEADERS]) if " -m " not in c]
)
def test_every_training_command_composes(command, folder):
    result = run_here(*words(command), "--cfg", "job", cwd=folder)
    assert result.code == 0, result.err


@pytest.mark.xdist_group("readme")
def test_the_commands_run_in_the_order_of_the_readme(folder, monkeypatch):
    fine = rbm.ais
    monkeypatch.setattr(
        rbm, "ais", lambda *given, **options: fine(*given, **options | {"temperatures": 50})
    )
    for command in COMMANDS[2:]:
        if command.startswith("torchrun"):
            done = subprocess.run(
                [sys.executable, "-m", "torch.distributed.run", *shlex.split(command)[1:], *SMALL],
                cwd=folder, capture_output=True, text=True, timeout=300, check=False,
            )  # fmt: skip
            assert done.returncode == 0, f"{command}\n{done.stderr[-2000:]}"
            continue
        if (
            not command
            or not command.startswith("genlab")
            or needs_data(command)
            or "hydra/launcher=slurm" in command
        ):
            continue  # what wants a cluster is composed in test_sweeps.py, and run in test_slurm.py
        arguments = words(command)
        if command in TRAINS:
            arguments += [
                word
                for word in SMALL
                if word.split("=")[0] not in command or "trainer.steps" in word
            ]
        if words(command)[0] in ("evaluate", "compare") and not re.search(r"\bn=", command):
            arguments += ["n=50"] if "terms=" in command else ["n=50", "terms=5"]
        if "ddpm_small" in command:  # the section before trains no such run
            assert (
                run_here("train", "model=ddpm_small", "model.timesteps=50", *SMALL, cwd=folder).code
                == 0
            )
        result = run_here(*(LESS.get(a, a) for a in arguments), cwd=folder)
        assert result.code == 0, f"{command}\n{result.err}"


def needs_data(command: str) -> bool:
    """Whether a command's data set has to be downloaded: it is composed above, and its recipe trained on other data."""
    return any(name in command for name in ("mnist", "celeba", "cifar10"))


def test_the_shell_line_of_the_readme_gives_completion():
    (line,) = [c for c in COMMANDS if c.startswith("eval")]
    bash = shutil.which("bash")
    script = line.replace("genlab completion", f"{sys.executable} -m genlab completion")
    done = subprocess.run(
        [bash, "-c", f"{script}; complete -p genlab"], capture_output=True, text=True, check=False
    )
    assert "_genlab" in done.stdout, done.stderr


def test_the_tables_are_those_that_the_script_writes(tmp_path):
    for name in ("README.md", "docs", "scripts"):
        source = REPOSITORY / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    subprocess.run([sys.executable, tmp_path / "scripts" / "report.py"], check=True, cwd=tmp_path)
    assert (tmp_path / "README.md").read_text() == README


def test_a_folder_made_smaller_is_reported_as_it_was_asked(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(REPOSITORY / "scripts")
    report = importlib.import_module("report")
    noise = np.random.default_rng(0)
    (tmp_path / "Five").mkdir()
    Image.fromarray(noise.integers(0, 256, (32, 32), dtype=np.uint8)).save(
        tmp_path / "Five" / "a.png"
    )
    spec = Spec(
        (1, 16, 16), range=(-1.0, 1.0), source=Spec((1, 8, 8), range=(-1.0, 1.0)), task="superres"
    )
    model = torch.nn.Linear(1, 1)  # where its weights lie is asked
    model.translate = lambda cond: torch.nn.functional.interpolate(cond, scale_factor=2)
    folder = SimpleNamespace(samples=tmp_path / "run" / "samples")
    place = SimpleNamespace(torch=torch.device("cpu"))
    info = {"dataset": "superres"}
    run = SimpleNamespace(
        model=model, spec=spec, folder=folder, step=7, name="twice", device=place, info=info
    )
    monkeypatch.setattr(report, "row", lambda runs, how, metrics, steps: how)
    for down, command in (
        (False, "genlab superres in=Five n=1"),
        (True, "genlab superres in=Five down=true n=1"),
    ):
        of_folder(run, "superres", tmp_path / "Five", seed=0, out=None, down=down)
        monkeypatch.setattr(report, "RunFolder", lambda path: folder)
        assert report.askings(tmp_path / "run") == [command]


@pytest.mark.parametrize(("step", "seconds", "more"), [
    (10, 60.0, ""),
    (9, 120.0, ""),
    (20, 90.0, " && genlab train resume=latest trainer.steps=20"),
    (20, 150.0, " && genlab train resume=latest trainer.steps=20 trainer.max_time=3"),
])  # fmt: skip
def test_a_run_that_was_trained_on_is_reported_with_its_resume(
    tmp_path, monkeypatch, step, seconds, more
):
    monkeypatch.syspath_prepend(REPOSITORY / "scripts")
    report = importlib.import_module("report")
    (tmp_path / "config.yaml").write_text("trainer: {steps: 10, max_time: 2}\n")
    assert report.gone_on(report.RunFolder(tmp_path), {"step": step, "seconds": seconds}) == more


def test_of_each_training_the_best_of_the_most_items_is_shown(monkeypatch):
    monkeypatch.syspath_prepend(REPOSITORY / "scripts")
    report = importlib.import_module("report")

    def result(command: str, name: str, value: float, n: int, **kind: str) -> dict:
        metrics = [{"name": "sampling_seconds", "value": 1.0, "metric": "cost"},
                   {"name": name, "value": value, "conditions": {"n": n}, **kind}]  # fmt: skip
        return {"command": command, "metrics": metrics}

    few, worse, better = (
        result("a", "frechet_classifier", value, n, better="lower")
        for value, n in ((1, 5), (4, 9), (3, 9))
    )
    kept = [result("a", "class_kept", value, 9) for value in (0.8, 0.9, 0.7)]
    older = [result("b", "modes", value, 9, higher_is_better=True) for value in (7, 8)]
    off = [result("b", "squared_error_of_a_draw", value, 9) for value in (2, 1)]
    assert report.best([few, worse, *kept, better, *older, *off]) == [
        better,
        kept[1],
        older[1],
        off[1],
    ]


@pytest.mark.parametrize("script", sorted(set(re.findall(r"scripts/\w+\.(?:sh|py)", README))))
def test_the_scripts_that_it_names_stand_and_parse(script):
    path = REPOSITORY / script
    check = (
        ["bash", "-n", path] if path.suffix == ".sh" else [sys.executable, "-m", "py_compile", path]
    )
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert path.suffix == ".py" or path.stat().st_mode & 0o100, f"{script} cannot be executed"
