"""The command line: error messages, precedence of configs, startup time, completion."""

from __future__ import annotations

import json
import os
import re
import resource
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from helpers.cli_runner import Result

from genlab import commands
from genlab.abilities import ABILITIES
from genlab.commands import models

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted(p.stem for p in (ROOT / "configs" / "model").glob("*.yaml"))
TINY = (
    "model.hidden=[4]",
    "trainer.steps=1",
    "trainer.batch_size=4",
    "trainer.preview_every=0",
    "device=cpu",
)
VAE = ("model=vae", "model.hidden=[4]", "model.latent=2")
GAN = ("model=gan", "model.hidden=[4]", "model.discriminator_hidden=[4]", "model.latent=2")


class TrainedRuns(dict):
    """Folders of small runs for the fields {vae} and {gan}; a run is trained on first use."""

    def __init__(self, train_run: Callable[..., Path]) -> None:
        self.train_run = train_run

    def __missing__(self, name: str) -> Path:
        return self.train_run(*{"vae": VAE, "gan": GAN}[name])


def split_command_line(line: str, train_run: Callable[..., Path]) -> list[str]:
    """Return the arguments of a command line; training is limited to one step."""
    arguments = shlex.split(line.format_map(TrainedRuns(train_run)))
    if arguments[0] == "train" and "resume=" not in line and "trainer" not in line:
        arguments.append("trainer.steps=1")
    return arguments


# --- refused command lines ------------------------------------------------------------------------

REFUSED: list[tuple[str, list[str]]] = [
    ("train seed=1,2 hydra.mode=MULTIRUN", ["hydra.mode=MULTIRUN", "genlab train -m"]),
    # unknown names: the message suggests the nearest known one
    ("trian", ["'trian'", "did you mean 'train'", "genlab --help"]),
    ("train modle=vae", ["'modle'", "did you mean 'model'"]),
    ("train model=vea", ["model=vea", "did you mean 'vae'", "dcgan"]),
    ("train dataset=mnst", ["dataset=mnst", "did you mean 'mnist'"]),
    ("train optimizer=adm", ["optimizer=adm", "did you mean 'adam'"]),
    ("train device=cud", ["device=cud", "did you mean 'cuda'"]),
    ("train experiment=dcgan_mnst", ["experiment=dcgan_mnst", "did you mean 'dcgan_mnist'"]),
    ("train trainer.stepz=3", ["'trainer.stepz'", "did you mean 'steps'"]),
    ("train model.hiden=[3]", ["'model.hiden'", "did you mean 'hidden'"]),
    ("train +model.hiden=[3] trainer.steps=1", ["'model.hiden'", "did you mean 'hidden'"]),
    ("train +trainer.stepz=3", ["'trainer.stepz'", "did you mean 'steps'"]),
    ("train trainer.name=gna", ["trainer.name=gna", "did you mean 'gan'", "rbm"]),
    ("train model._target_=genlab.models.vae.vae.VEA", ["VEA", "did you mean 'VAE'"]),
    ("train model._target_=nothere.Model", ["the module 'nothere' does not exist"]),
    ("train --mulitrun", ["--mulitrun", "did you mean '--multirun'"]),
    ("sample nn=3", ["'nn'", "did you mean 'n'"]),
    ("sample sampler=ddmi", ["sampler=ddmi", "did you mean 'ddim'"]),
    ("completion bahs", ["did you mean 'bash'"]),
    # wrong types, numbers out of range
    ("train trainer.steps=abc", ["trainer.steps=abc", "integer"]),
    ("train trainer.steps=2.5", ["trainer.steps=2.5", "integer"]),
    ("train trainer.steps=null", ["trainer.steps=null", "integer"]),
    ("train trainer.steps=[1,2]", ["trainer.steps=[1, 2]", "integer"]),
    ("train trainer.steps=-3", ["trainer.steps=-3", "greater than 0"]),
    ("train trainer.ema_decay=1", ["trainer.ema_decay=1", "less than 1"]),
    ("train model.beta=-1", ["model.beta=-1", "greater than or equal to 0"]),
    ("train model.hidden=5", ["model.hidden=5", "tuple"]),
    ("train model.hidden=[5,a]", ["model.hidden[1]=a", "integer"]),
    ("train model.likelihood=poisson", ["model.likelihood=poisson", "'bernoulli'"]),
    ("train dataset.validation=2", ["dataset.validation=2", "less than or equal to 1"]),
    ("train optimizer.lr=-1", ["optimizer", "learning rate"]),
    ("train optimizer.lr=fast", ["optimizer.lr=fast", "number"]),
    ("train device.precision=fp8", ["device.precision=fp8", "'bf16'"]),
    ("train seed=x", ["seed=x", "integer"]),
    ("train seed=-1", ["seed=-1", "greater than or equal to 0"]),
    ("train optimizer.betas=[0.9]", ["optimizer.betas=[0.9]"]),
    ("train trainer=3", ["trainer"]),
    ("train out=null", ["out"]),
    ("train model.latent=1000000000", ["out of memory"]),
    ("train model=null", ["must be a string"]),
    ("sample run={vae} n=0", ["n=0", "greater than 0"]),
    ("sample run={vae} seed=-1", ["seed=-1"]),
    ("evaluate run={vae} split=tset", ["split=tset", "'test'"]),
    # syntax of the command line
    ("train model.hidden=[500", ["'[500'", "key=value"]),
    ("train model=vae=3", ["model=vae=3 does not exist", "did you mean 'vae'"]),
    ("train steps", ["steps"]),
    ("train trainer.grad_clip=${{nothing}} trainer.steps=1", ["nothing"]),
    ("train --bogus", ["unknown flag '--bogus'"]),
    ("train --cfg", ["--cfg", "job, hydra, all"]),
    ("train --cfg jbo", ["--cfg", "job, hydra, all"]),
    ("train --config-dir", ["--config-dir"]),
    ("train --config-dir=nowhere", ["nowhere", "this folder does not exist"]),
    ("train --multirun=3", ["--multirun"]),
    ("models all", ["models", "all"]),
    ("datasets all", ["datasets", "all"]),
    # missing data
    (
        "train dataset=mnist dataset.root=empty dataset.download=false",
        ["mnist", "download", "empty/MNIST/raw"],
    ),
    (
        "train dataset=cifar10 dataset.root=empty dataset.download=false",
        ["cifar10", "empty/cifar-10-batches-py"],
    ),
    ("train dataset=celeba dataset.root=empty dataset.download=false", ["celeba", "empty/celeba"]),
    ("train dataset=image_folder", ["image_folder", "dataset.path="]),
    ("train dataset=image_folder dataset.path=nowhere", ["dataset.path=nowhere", "no such folder"]),
    ("train dataset=table", ["table", "dataset.path="]),
    # models that do not fit the data
    ("train model=dcgan preprocess.size=null", ["power of two", "(1, 8, 8)", "dataset.size=16"]),
    ("train model=dcgan dataset.size=28", ["power of two", "(1, 28, 28)", "dataset.size=32"]),
    ("train model=vae dataset=points", ["ernoulli", "binary", "model.likelihood=gaussian"]),
    ("train model=rbm preprocess.binarize=none", ["RBM", "binary", "preprocess.binarize"]),
    (
        "train model=realnvp preprocess.dequantize=false",
        ["realnvp", "discrete", "dataset.dequantize=true"],
    ),
    (
        "train model=gan dataset=fake model.conditional=true",
        ["GAN", "labels", "model.conditional=false"],
    ),
    # targets of the wrong kind
    ("train model._target_=os.system", ["os.system"]),
    ("train optimizer._target_=os.system", ["os.system"]),
    ("train dataset._target_=genlab.models.vae.vae.VAE", ["VAE", "is not a data set"]),
    ("train model._target_=genlab.spec.DataSpec", ["Spec", "genlab.model.GenerativeModel"]),
    # runs and the commands that they support
    ("sample", ["no run", "genlab train"]),
    ("sample run=nowhere", ["run=nowhere", "no such folder"]),
    ("info run=nowhere", ["run=nowhere", "no such folder"]),
    ("info device=cpu", ["unknown option 'device'"]),
    ("sample sampler.eta=1", ["sampler has name", "it is an option of sampler=ddim, dpm_solver"]),
    (
        "train optimizer=adam optimizer.momentum=0.9",
        ["optimizer has lr", "it is an option of optimizer=rmsprop, sgd"],
    ),
    ("sample run=[1]", ["run=[1]"]),
    ("evaluate run={vae} n=1 iwae_samples=1 metrics=[energy_distance]", ["n=1"]),
    ("train resume=nowhere", ["nowhere"]),
    ("train resume=latest", ["no run"]),
    ("train out={vae}", ["contains a run already", "resume="]),
    ("train resume={vae} model.beta=2", ["model.beta=2", "model.beta=1.0"]),
    ("train resume={vae} model=gan", ["model=gan", "model=vae"]),
    ("train resume={vae} trainer.batch_size=3", ["trainer.batch_size=3", "trainer.steps"]),
    ("sample run={vae} label=3", ["label=3", "classes"]),
    ("sample run={vae} sampler=ddim", ["sampler", "ddim", "vae"]),
    ("sample run={gan} sampler.steps=5", ["sampler.steps"]),
    ("evaluate run={gan} metrics=[likelihood]", ["GAN", "models that do", "vae", "realnvp", "rbm"]),
    ("evaluate run={gan} metrics=[log_prob]", ["GAN", "log_prob", "realnvp"]),
    ("evaluate run={gan} metrics=[likelyhood]", ["did you mean 'likelihood'"]),
    ("evaluate run={vae} metrics=[mode_coverage]", ["mode_coverage", "digits"]),
    (
        "train trainer.monitor=nll_elbo trainer.evaluate_every=0 trainer.steps=1",
        ["trainer.evaluate_every"],
    ),
]


@pytest.mark.parametrize(("line", "fragments"), REFUSED, ids=[line for line, _ in REFUSED])
def test_bad_input_is_refused_in_one_line(
    line: str, fragments: list[str], genlab, train_run, tmp_path: Path
) -> None:
    """Bad input: exit code 2, a one-line message, no traceback, and no files written."""
    result = genlab(*split_command_line(line, train_run))
    message = result.error
    for fragment in fragments:
        assert fragment in message
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_missing_gpu_is_refused(genlab, tmp_path: Path) -> None:
    """The message names the missing GPU and the option to use instead."""
    message = genlab("train", "device=cuda", "trainer.steps=1").error
    assert "device=cuda" in message and "device=cpu" in message
    assert not list(tmp_path.iterdir())


def test_unwritable_run_folder_is_refused(genlab, tmp_path: Path) -> None:
    """The message names a run folder that cannot be created."""
    (tmp_path / "file").write_text("")
    assert "file" in genlab("train", *TINY, "out=file/run").error


@pytest.mark.parametrize("switch", ["debug=true", "HYDRA_FULL_ERROR"])
def test_debug_switches_show_the_traceback(switch: str, genlab_process) -> None:
    """debug=true and HYDRA_FULL_ERROR=1 show the traceback of an error."""
    if switch == "debug=true":
        result = genlab_process("train", "model=vea", "debug=true")
    else:
        result = genlab_process("train", "model=vea", HYDRA_FULL_ERROR="1")
    assert result.code != 0 and "Traceback" in result.err


# --- damaged and hostile runs ---------------------------------------------------------------------


@pytest.fixture
def run_copy(train_run, tmp_path: Path) -> Path:
    """Return a copy of a small run, for the test to damage."""
    return shutil.copytree(train_run(*VAE), tmp_path / "run")


COMMANDS = (("sample", "run=run", "n=1"), ("train", "resume=run", "trainer.steps=3"))


@pytest.mark.parametrize("command", COMMANDS, ids=["sample", "resume"])
@pytest.mark.parametrize("fraction", [0.0, 0.001, 0.5, 0.99, 0.9999])
def test_truncated_checkpoint_is_refused(
    fraction: float, command: tuple[str, ...], run_copy: Path, genlab
) -> None:
    """A checkpoint truncated anywhere is named in the message."""
    [checkpoint] = (run_copy / "checkpoints").glob("step_*.pt")
    data = checkpoint.read_bytes()
    checkpoint.write_bytes(data[: int(fraction * len(data))])
    message = genlab(*command).error
    assert checkpoint.name in message and "truncated or unreadable" in message


class Payload:
    """Creates a file when an unsafe unpickler loads it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("command", COMMANDS, ids=["sample", "resume"])
def test_checkpoint_cannot_run_code(
    command: tuple[str, ...], run_copy: Path, genlab, tmp_path: Path
) -> None:
    """A pickle that would run code is refused, and the code does not run."""
    [checkpoint] = (run_copy / "checkpoints").glob("step_*.pt")
    torch.save({"model": Payload(tmp_path / "made"), "step": 1}, checkpoint)
    assert "unreadable" in genlab(*command).error
    assert not (tmp_path / "made").exists()


HOSTILE = {"_target_": "os.system", "command": "touch made"}
HOSTILE_EDITS: dict[str, Callable[[dict], object]] = {
    "model": lambda config: config.update(model=HOSTILE),
    "dataset": lambda config: config.update(dataset=HOSTILE),
    "list": lambda config: config["model"].update(hidden=[4, HOSTILE]),
    "nested": lambda config: config["model"].update(beta={"a": [{"b": HOSTILE}]}),
    "unknown": lambda config: config.update(more=HOSTILE),
    "through torch": lambda config: config.update(
        optimizer={**HOSTILE, "_target_": "torch.optim.os.system"}
    ),
    "through genlab": lambda config: config.update(
        model={**HOSTILE, "_target_": "genlab.config.instantiate.os.system"}
    ),
}


@pytest.mark.parametrize("command", COMMANDS, ids=["sample", "resume"])
@pytest.mark.parametrize("place", HOSTILE_EDITS)
def test_config_with_foreign_target_is_refused(
    place: str, command: tuple[str, ...], run_copy: Path, genlab, tmp_path: Path
) -> None:
    """A `_target_` outside genlab is refused anywhere in a run's config and is not called."""
    config = yaml.safe_load((run_copy / "config.yaml").read_text())
    HOSTILE_EDITS[place](config)
    (run_copy / "config.yaml").write_text(yaml.safe_dump(config))
    assert "system" in genlab(*command).error
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("command", COMMANDS, ids=["sample", "resume"])
@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("config.yaml", "model: [1,"),
        ("config.yaml", "model: !!python/object/apply:os.system [touch made]"),
        ("run.json", "{"),
    ],
    ids=["cut config", "tagged config", "cut run.json"],
)
def test_unreadable_run_files_are_refused(
    file: str, text: str, command: tuple[str, ...], run_copy: Path, genlab, tmp_path: Path
) -> None:
    """The message names a config.yaml or run.json that cannot be read."""
    (run_copy / file).write_text(text)
    assert file in genlab(*command).error
    assert not (tmp_path / "made").exists()


# --- precedence of configs ------------------------------------------------------------------------


@pytest.fixture
def user_configs(tmp_path: Path) -> Path:
    """Create a user's folder of group files and return it."""
    files = {
        "model/mine.yaml": """
            # @package _global_
            defaults:
              - override /optimizer: sgd
              - _self_
            model: {_target_: mine.Mine, width: 3}
            optimizer: {lr: 0.5}
            preprocess: {range: [0, 1], size: 12}
            trainer: {name: vae, steps: 77, batch_size: 11, lr_warmup_steps: 5}
        """,
        "experiment/exp.yaml": """
            # @package _global_
            defaults:
              - override /model: mine
              - override /dataset: fake
              - override /optimizer: rmsprop
              - _self_
            dataset: {classes: 4}
            model: {width: 4}
            optimizer: {lr: 0.25}
            preprocess: {size: 10}
            trainer: {steps: 88, batch_size: 22}
        """,
    }
    for name, text in files.items():
        path = tmp_path / "configs" / name
        path.parent.mkdir(parents=True)
        lines = text.strip("\n").splitlines()
        path.write_text("\n".join(line.removeprefix(" " * 12) for line in lines))
    (tmp_path / "mine.py").write_text(
        "import torch\n\n\nclass Mine(torch.nn.Module):\n"
        "    def __init__(self, spec, *, width: int = 1) -> None:\n"
        "        super().__init__()\n"
        "        self.layer = torch.nn.Linear(spec.dim, width)\n\n"
        "    def loss(self, batch):\n"
        "        return {'loss': self.layer(batch.x.flatten(1)).square().mean()}\n"
    )
    return tmp_path / "configs"


def parse_config(result: Result) -> dict:
    """Return the config that `--cfg job` printed."""
    assert result.code == 0, result.err
    return yaml.safe_load(result.out)


def test_experiment_overrides_model_recipe(user_configs: Path, genlab) -> None:
    """Precedence: command line, then experiment, then model recipe, then defaults."""
    config = parse_config(
        genlab(
            "train",
            "--config-dir",
            user_configs,
            "--cfg",
            "job",
            "experiment=exp",
            "trainer.batch_size=33",
        )
    )
    # from the command line
    assert config["trainer"]["batch_size"] == 33
    # from the experiment
    assert config["trainer"]["steps"] == 88 and config["optimizer"]["lr"] == 0.25
    assert config["model"] == {"_target_": "mine.Mine", "width": 4}
    assert config["preprocess"]["size"] == 10
    # the experiment's choice of a group file overrides the recipe's
    assert config["optimizer"]["_target_"] == "torch.optim.RMSprop"
    assert config["dataset"]["_target_"] == "genlab.data.fake.Fake"
    assert config["dataset"]["classes"] == 4
    # from the model's recipe
    assert config["trainer"]["lr_warmup_steps"] == 5
    assert config["preprocess"]["range"] == [0, 1]
    # from train.yaml
    assert config["trainer"]["keep_checkpoints"] == 3


def test_model_recipe_overrides_defaults(user_configs: Path, genlab) -> None:
    """The recipe's values and choices apply, unless the command line chooses another."""
    config = parse_config(
        genlab("train", "model=mine", "--config-dir", user_configs, "dataset=mnist", "--cfg", "job")
    )
    assert (
        config["trainer"]["steps"] == 77
        and config["optimizer"] | {"lr": 0.5} == config["optimizer"]
    )
    assert config["optimizer"]["_target_"] == "torch.optim.SGD" and config["dataset"][
        "_target_"
    ].endswith("MNIST")
    chosen = parse_config(
        genlab(
            "train", "--config-dir", user_configs, "--cfg", "job", "model=mine", "optimizer=adamw"
        )
    )
    assert (
        chosen["optimizer"]["_target_"] == "torch.optim.AdamW" and chosen["optimizer"]["lr"] == 0.5
    )


def test_users_model_trains_and_opens_if_trusted(
    user_configs: Path, genlab, tmp_path: Path
) -> None:
    """A class in the working folder trains; its run opens only with trusted_packages."""
    result = genlab(
        "train",
        "--config-dir",
        user_configs,
        "model=mine",
        "trainer.steps=1",
        "device=cpu",
        "out=run",
    )
    assert result.code == 0, result.err
    assert (tmp_path / "run" / "checkpoints" / "step_000000001.pt").exists()
    assert "trusted_packages=[" in genlab("info", "run=run").error
    assert genlab("info", "run=run", "trusted_packages=[mine]").code == 0


@pytest.mark.parametrize("name", ["model/vae.yaml", "experiment/gan_ring.yaml", "train.yaml"])
def test_users_file_must_not_shadow_a_shipped_one(name: str, user_configs: Path, genlab) -> None:
    """A user's file with the name of a shipped file, which Hydra would ignore, is refused."""
    (user_configs / name).write_text("lr: 1\n")
    assert name in genlab("train", f"--config-dir={user_configs}", "model=mine").error


# --- flags, sweeps, simultaneous starts -----------------------------------------------------------


def test_flags_are_accepted_between_overrides(genlab) -> None:
    """Hydra's flags may come anywhere after the command."""
    config = parse_config(
        genlab("train", "seed=3", "--cfg", "job", "model=gan", "--resolve", "trainer.steps=4")
    )
    assert (
        config["seed"] == 3
        and config["trainer"]["steps"] == 4
        and config["out"].startswith("outputs/gan-digits/")
    )
    assert "train" in genlab("train", "seed=3", "--info", "defaults", "model=gan").out
    assert genlab("train", "--info", "model=gan").code == 0
    assert "trainer" in genlab("train", "--help").out


def test_failed_sweep_job_does_not_stop_the_others(genlab, tmp_path: Path) -> None:
    """Each job of a sweep has its own run folder; the sweep reports a job that failed."""
    result = genlab(
        "train", "-m", *VAE, "device=cpu", "trainer.batch_size=4", "trainer.steps=1,-1,2"
    )
    assert (
        result.code == 2 and result.err.count("genlab: ") == 1 and "trainer.steps=-1" in result.err
    )
    assert "Traceback" not in result.err
    runs = sorted(tmp_path.glob("outputs/sweeps/*/*/run.json"))
    steps = [
        yaml.safe_load(path.with_name("config.yaml").read_text())["trainer"]["steps"]
        for path in runs
    ]
    assert steps == [1, 2]


def test_simultaneous_starts_use_separate_folders(tmp_path: Path) -> None:
    """Runs that start at the same time have separate, complete folders."""
    command = [sys.executable, "-m", "genlab", "train", *TINY]
    processes = [
        subprocess.Popen(
            command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for _ in range(3)
    ]
    for process in processes:
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
    folders = [path.parent for path in tmp_path.glob("outputs/vae-digits/*/run.json")]
    assert len(folders) == 3
    for folder in folders:
        assert json.loads((folder / "run.json").read_text())["model"] == "vae"
        assert (
            torch.load(folder / "checkpoints" / "step_000000001.pt", weights_only=True)["step"] == 1
        )


# --- listings -------------------------------------------------------------------------------------


def parse_table(text: str, head: str) -> dict[str, list[str]]:
    """Return the rows of a printed table by their first cell; "" has the column heads.

    Args:
        head: text in the first line of the table.
    """
    lines = text.splitlines()
    at = next(i for i, line in enumerate(lines) if head in line)
    columns = list(re.finditer(r"\S+( \S+)*", lines[at]))
    spans = [
        (column.start(), after.start() if after else None)
        for column, after in zip(columns, [*columns[1:], None], strict=True)
    ]
    rows = {"": [column.group() for column in columns]}
    for line in lines[at + 2 :]:
        if not line.strip():
            break
        first, *others = [line[start:end].strip() for start, end in spans]
        rows[first] = others
    return rows


def test_models_lists_every_recipe(genlab) -> None:
    """Every recipe is listed with its paper and its abilities, in 80 columns."""
    out = genlab("models").out
    assert max(map(len, out.splitlines())) <= 80
    papers, _, rows = out.rpartition("likelihood  abilities\n")
    table = {line.split()[0]: line for line in rows.splitlines()}
    assert list(table) == RECIPES
    verbs = list(models.ABILITY_LETTERS)
    can = {}
    for name, line in table.items():
        row = re.fullmatch(r"\S+ +(exact|bound|estimate|) +([A-Z.]( [A-Z.])+)", line)
        letters = row.group(2).split()
        has = {verb for verb, letter in zip(verbs, letters, strict=True) if letter != "."}
        can[name] = (row.group(1), has)
    assert can["vae"][0] == "bound" and can["vae"][1] >= {"elbo", "encode"}
    assert "log_prob" not in can["vae"][1]
    assert can["realnvp"][0] == "exact" and "log_prob" in can["realnvp"][1]
    assert can["gan"][0] == "" and "sample" in can["gan"][1]
    assert "log_partition" in can["rbm"][1] and can["ddpm"][0] == "bound"
    assert set(verbs) == set(ABILITIES)
    assert "Kingma & Welling 2014" in papers and "Goodfellow" in papers


def test_datasets_lists_every_dataset(genlab) -> None:
    """Every dataset is listed with its description, in 80 columns."""
    lines = genlab("datasets").out.splitlines()
    assert max(map(len, lines)) <= 80
    listed = [line.split()[0] for line in lines if not line.startswith(" ")]
    assert listed == sorted(p.stem for p in (ROOT / "configs" / "dataset").glob("*.yaml"))
    assert all(len(line.split()) > 1 for line in lines if not line.startswith(" "))


def test_info_lists_abilities_and_commands(genlab, train_run) -> None:
    """`genlab info` lists what a run supports, with the commands to type."""
    run = train_run(*VAE)
    output = genlab("info", f"run={run}").out
    rows = parse_table(output, "ability")
    assert rows["elbo"] == ["bound"] and rows["log_prob"] == ["none"]
    assert f"genlab sample run={run}" in output and "metrics=[likelihood" in output


def test_python_m_is_the_same_command(genlab_process, genlab) -> None:
    """`python -m genlab` is `genlab`."""
    process = genlab_process("--help")
    assert process.code == 0 and process.out == genlab("--help").out == genlab().out
    installed = shutil.which("genlab", path=str(Path(sys.executable).parent))
    if installed:
        script = subprocess.run([installed, "--help"], capture_output=True, text=True, check=True)
        assert script.stdout == process.out


# --- startup time ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("command", "seconds"), [("--help", 0.4), ("train --cfg job", 0.8)])
def test_startup_is_fast(command: str, seconds: float, genlab_process) -> None:
    """The fastest of 5 starts, in CPU seconds: wall time would depend on concurrent tests."""
    durations = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert genlab_process(*command.split()).code == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        durations.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(durations) < seconds


@pytest.mark.parametrize(
    "command",
    [
        "--help",
        "train --cfg job",
        "train model=vea",
        "datasets",
        "completion bash",
        "sweep status nowhere",
    ],
)
def test_light_commands_do_not_import_torch(command: str, tmp_path: Path) -> None:
    """Commands that need no tensors do not import torch."""
    code = (
        "import sys, genlab.cli.main\n"
        f"sys.argv = ['genlab', *{command.split()!r}]\n"
        "try:\n    genlab.cli.main.main()\nexcept SystemExit:\n    pass\n"
        "assert 'torch' not in sys.modules, 'torch was imported'"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr


# --- completion -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("genlab ", set(commands.COMMANDS)),
        ("genlab ev", {"evaluate"}),
        ("genlab train model=", set(RECIPES)),
        ("genlab train model=real", {n for n in RECIPES if n.startswith("real")}),
        ("genlab train mod", {"model=", "model."}),
        ("genlab train seed=1 trainer.st", {"trainer.steps="}),
        ("genlab sample sampler=dd", {"ddim"}),
        ("genlab train hydra/launcher=slurm_", {"slurm_cpu", "slurm_node", "slurm_preemptible"}),
        ("genlab sweep re", {"rerun", "resume"}),
        ("genlab sweep status b", {"bin"}),
    ],
)
def test_bash_completion(line: str, expected: set[str], genlab, tmp_path: Path) -> None:
    """Completion offers commands, config groups, their choices and options."""
    bin = tmp_path / "bin"
    bin.mkdir()
    (bin / "genlab").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m genlab "$@"\n')
    (bin / "genlab").chmod(0o755)
    script = genlab("completion", "bash").out
    words = line.split(" ")
    key, equals, value = words[-1].partition("=")
    if equals:  # Bash splits words at = too
        words = [*words[:-1], key, equals, value]
    code = (
        f"{script}\nCOMP_LINE={shlex.quote(line)}; COMP_POINT={len(line)}; "
        f"COMP_WORDS=({shlex.join(words)}); COMP_CWORD={len(words) - 1}; _genlab; "
        "printf '%s\\n' \"${COMPREPLY[@]}\""
    )
    env = os.environ | {"PATH": f"{bin}:{os.environ['PATH']}"}
    process = subprocess.run(
        ["bash", "-c", code], env=env, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert set(process.stdout.split()) == expected, process.stderr


def test_zsh_completion(genlab) -> None:
    """The zsh script loads the Bash function through bashcompinit."""
    bash, zsh = genlab("completion", "bash").out, genlab("completion", "zsh").out
    assert zsh.endswith(bash) and "bashcompinit" in zsh
    if shutil.which("zsh"):
        subprocess.run(["zsh", "-n"], input=zsh, text=True, check=True)


def test_resuming_a_finished_run_succeeds_and_changes_nothing(genlab, train_run) -> None:
    """A scheduler may start a finished job again; the job must not fail."""
    run = train_run(*VAE)
    before = {path: path.read_bytes() for path in [*sorted(run.rglob("*.pt")), run / "stats.jsonl"]}
    result = genlab("train", f"resume={run}")
    assert result.code == 0 and "is done: 2 steps" in result.out and "trainer.steps=" in result.out
    assert before == {path: path.read_bytes() for path in before}


def test_ctrl_c_before_the_first_step_prints_one_line(genlab_process, tmp_path: Path) -> None:
    """The model's constructor sends SIGINT, before the handlers of a training are set."""
    (tmp_path / "slow.py").write_text(
        "import signal\nfrom torch import nn\n\n\nclass Slow(nn.Module):\n"
        "    def __init__(self, spec):\n        super().__init__()\n"
        # The process that runs the tests may ignore SIGINT.
        "        signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "        signal.raise_signal(signal.SIGINT)\n"
    )
    (tmp_path / "confs" / "model").mkdir(parents=True)
    (tmp_path / "confs" / "model" / "slow.yaml").write_text(
        "# @package _global_\nmodel:\n  _target_: slow.Slow\ntrainer:\n  name: vae\n"
        "trusted_packages: [slow]\n"
    )
    result = genlab_process("train", "--config-dir", "confs", "model=slow", "out=run")
    assert result.code == 130 and not (tmp_path / "run").exists()
    assert result.err.splitlines() == [
        "genlab: SIGINT: interrupted; what was saved before is kept"
    ], result.err


def test_closed_output_pipe_is_not_an_error(repository) -> None:
    """`genlab models | head -1` closes the pipe before all output is written."""
    line = f"set -o pipefail; {sys.executable} -m genlab models | head -n 1"
    process = subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, cwd=repository, check=False
    )
    assert (process.returncode, process.stderr) == (0, ""), process.stderr
