"""The command line with random overrides: each succeeds or gives one line of error."""

from __future__ import annotations

import random
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from genlab.commands import COMMANDS
from genlab.sweeps.sweep_folder import SweepFolder

NUM_CASES = 560
MAX_CPU_S = 10
MAX_EXTRA_BYTES = 6 * 2**30  # that a command may allocate
SMALL = ("model=vae", "model.hidden=[4]", "model.latent=2")
FEW = (
    "trainer.steps=1",
    "trainer.max_minutes=1e-9",
    "trainer.batch_size=4",
    "trainer.preview_every=0",
    "device=cpu",
)
FAKE = ("dataset@dataset.base=fake", "dataset.base.shape=[3,8,8]")
# the runs that commands use, as small as possible
RUNS = {
    "vae": SMALL,
    "cvae": ("model=cvae", "model.hidden=[4]"),
    "dae": ("model=dae", "model.hidden=[4]"),
    "points": ("model=gan", "model.hidden=[4]", "model.latent=1", "dataset=mixture_1d"),
    "mixture": ("model=gmm", "model.num_components=2", "dataset=ring"),
    "text": ("model=gpt_text", "model.num_layers=1", "model.num_heads=2", "model.width=16"),
    "style": (
        "model=stylegan2",
        "model.channel_max=8",
        "model.latent=12",
        "model.num_mapping_layers=2",
    ),
    "colour": ("model=pix2pix", "model.width=2", "dataset.operator=gray", *FAKE),
    "larger": ("model=srresnet", "model.width=4", "model.num_blocks=1", "preprocess.size=16"),
    "films": ("model=next_frame", "model.width=[2,2,2,2]", "model.adversarial_weight=0"),
}
OUTPUT = ("output_dir=made", "device=cpu")
# arguments that make each command quick, unless an override changes that
COMMAND_LINES: dict[str, tuple[str, ...]] = {
    "train": (*SMALL, *FEW, "out=new"),
    "plan": (*SMALL, *FEW),
    "sample": ("run={vae}", "n=2", *OUTPUT),
    "complete": ("run={text}", "n=2", *OUTPUT),
    "reconstruct": ("run={vae}", "n=2", *OUTPUT),
    "encode": ("run={vae}", "n=2", *OUTPUT),
    "interpolate": ("run={vae}", *OUTPUT),
    "traverse": ("run={vae}", "n=1", "frames=2", *OUTPUT),
    "arithmetic": ("run={vae}", "a=1", "b=2", "n=50", *OUTPUT),
    "mix": ("run={style}", "rows=1", "columns=1", *OUTPUT),
    "project": ("run={vae}", "n=1", "steps=1", "tries=1", *OUTPUT),
    "inpaint": ("run={vae}", "n=1", "steps=1", *OUTPUT),
    "denoise": ("run={dae}", "n=2", *OUTPUT),
    "translate": ("run={colour}", "n=1", *OUTPUT),
    "colorize": ("run={colour}", "n=1", *OUTPUT),
    "superres": ("run={larger}", "n=1", *OUTPUT),
    "forecast": ("run={films}", "n=1", "videos=1", *OUTPUT),
    "evaluate": ("run={vae}", "n=8", "iwae_samples=1", "metrics=[reconstruction]", "device=cpu"),
    "likelihood": ("run={vae}", "n=2", "iwae_samples=1", *OUTPUT),
    "density": ("run={mixture}", "cells=20", "n=10", *OUTPUT),
    "trajectory": ("run={vae}", "n=1", "frames=0", *OUTPUT),
    "impute": ("run={mixture}", "draws=1", *OUTPUT),
    "quiz": ("run={vae}", "n=4", *OUTPUT),
    "lectures": (),
    "dynamics": ("run={points}", "gif=false", "n=10", *OUTPUT),
    "anomaly": ("run={vae}", "classes=1", "n=2", "iwae_samples=1", *OUTPUT),
    "classify": ("run={cvae}", "n=2", "iwae_samples=1", *OUTPUT),
    "compare": (
        "runs=[{vae}]",
        "n=8",
        "iwae_samples=1",
        "metrics=[reconstruction]",
        "output_dir=page",
        "device=cpu",
    ),
    "info": ("run={vae}",),
    "sweep": ("best", "{sweep}"),
    "models": (),
    "datasets": (),
    "completion": ("bash",),
}

WORDS = [
    "abc",
    "ü∂ß",
    "日本語",
    "🙂",
    "a b",
    "a=b",
    "a,b",
    "a:b",
    "~",
    "*",
    "\\",
    "'",
    '"',
    "'a",
    'a"b',
    "`",
    "$",
    "%s",
    "{}",
]
NUMBERS = [
    "-1",
    "0",
    "1",
    "2.5",
    "-0.0",
    "1e400",
    "-1e400",
    "nan",
    "inf",
    "-inf",
    "1e-400",
    "1_0",
    "0x10",
    "true",
    "null",
]
NUMBERS += [str(10**12), str(10**18), str(10**30), str(2**63), str(-(2**63) - 1), "9" * 5000]
NESTED = [
    "",
    "[]",
    "{}",
    "[1,2]",
    "[[1],[2]]",
    "{a:1}",
    "{a:{b:{c:[1]}}}",
    "[" * 300 + "]" * 300,
    "{a:" * 200 + "1" + "}" * 200,
]
NESTED += [
    "[",
    "]",
    "{",
    "}",
    "[1,",
    "{a",
    "[1]]",
    "{_target_:os.system}",
    "[{_target_:os.system,command:touch marker}]",
]
RESOLVED = [
    "${seed}",
    "${nothing}",
    "${",
    "${}",
    "$${seed}",
    "${oc.env:HOME}",
    "${oc.env:NO_SUCH}",
    "${oc.decode:'['}",
]
RESOLVED += [
    "${hydra:runtime.cwd}",
    "${genlab.folder:a,b}",
    "range(3)",
    "choice(1,2)",
    "interval(0,1)",
    "glob(*)",
    "sort(3,1)",
]
CONTROL = ["\0", "a\0b", "\x1b[31mred", "\n", "a\nb", "\t", "\r", "\u202egnp.", "\ud800"]
PATHS = [
    "/",
    ".",
    "..",
    "../../../etc/passwd",
    "/dev/null",
    "/dev/full",
    "/proc/self/mem",
    "~/x",
    "-x",
]
PATHS += ["x" * 300, "x" * 5000, "a/" * 2000]
VALUES = [WORDS, NUMBERS, NESTED, RESOLVED, CONTROL, PATHS]
KEYS = [
    "",
    ".",
    "..",
    "=",
    "a.",
    ".a",
    "model.",
    "_target_",
    "model._target_",
    "dataset._target_",
    "model.hidden[0]",
    "a b",
    "ü",
]
KEYS += [
    "hydra.run.dir",
    "hydra.sweep.dir",
    "hydra.job.name",
    "hydra.job.chdir",
    "hydra.verbose",
    "hydra.mode",
    "hydra.nothing",
]
KEYS += [
    "hydra/launcher",
    "hydra/sweeper",
    "hydra/help",
    "model@x",
    "dataset@dataset.base",
    "model/vae",
]
KEYS += ["x" * 3000, "a." * 200 + "a", "\0"]
FLAGS = [
    "--cfg",
    "--cfg=x",
    "--info",
    "-x",
    "--",
    "-",
    "---",
    "--\0",
    "-m",
    "-sc",
    "--resolve",
    "--multirun=1",
    "--help=1",
]
FLAGS += [
    "--config-name=x",
    "--config-path=/",
    "--package=a.b",
    "--config-dir=/",
    "--config-dir=\0",
    "--config-dir=" + "x" * 300,
]


def dotted_keys(node: object, path: str = "") -> Iterator[str]:
    """Yield the dotted keys of a config, including those of its mappings."""
    if isinstance(node, DictConfig):
        for key in node:
            dotted = f"{path}.{key}" if path else str(key)
            yield dotted
            yield from dotted_keys(node._get_node(key), dotted)


def option_names(command: str) -> list[str]:
    """Return the keys of a command's composed config, or the options of a command without one."""
    if not COMMANDS[command].composed:
        return ["metric", "higher", "n"]  # of genlab sweep best
    OmegaConf.register_new_resolver("genlab.stamp", lambda: "stamp", replace=True)
    OmegaConf.register_new_resolver("genlab.folder", lambda *names: "-".join(names), replace=True)
    GlobalHydra.instance().clear()
    with initialize_config_module("genlab.configs", version_base="1.3"):
        return list(dotted_keys(compose(command)))


def misspell(rng: random.Random, word: str) -> str:
    """Return a word with one character added, removed or changed."""
    at = rng.randrange(len(word))
    return rng.choice(
        [
            word[:at] + word[at + 1 :],
            word[:at] + rng.choice("xZ_.é[") + word[at:],
            word.upper(),
            word + ".x",
        ]
    )


@cache
def random_cases() -> list[tuple[str, str]]:
    """Return NUM_CASES pairs of a command and a random override or flag."""
    rng = random.Random(0)
    known = {command: option_names(command) for command in COMMAND_LINES}
    cases = []
    for i in range(NUM_CASES):
        command = rng.choice([*COMMAND_LINES, "train", "train"])
        if i % 12 == 11:
            cases.append((command, rng.choice(FLAGS)))
            continue
        key = rng.choice(known[command])
        if i % 6 == 4:
            key = rng.choice(KEYS)
        if i % 6 == 5:
            key = misspell(rng, key)
        prefix = rng.choice(["", "", "", "", "+", "++", "~"])
        value = rng.choice(rng.choice(VALUES))
        cases.append((command, rng.choice([f"{prefix}{key}={value}"] * 9 + [f"{prefix}{key}"])))
    return cases


class TookTooLongError(BaseException):
    """A command used more than MAX_CPU_S of the processor."""


@pytest.fixture
def resource_limits() -> Iterator[None]:
    """Limit the processor time and the memory that a command may use."""

    def interrupt(*_: object) -> None:
        raise TookTooLongError

    before, limits = (
        signal.signal(signal.SIGPROF, interrupt),
        resource.getrlimit(resource.RLIMIT_AS),
    )
    statm = Path("/proc/self/statm")
    if statm.exists():
        used = int(statm.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MAX_EXTRA_BYTES, limits[1]))
    signal.setitimer(signal.ITIMER_PROF, MAX_CPU_S)
    yield
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.signal(signal.SIGPROF, before)
    resource.setrlimit(resource.RLIMIT_AS, limits)


def check_result(code: int, err: str) -> None:
    """Check that a command succeeded, or was refused in one line."""
    assert code in (0, 2), f"exit code {code}\n{err[-3000:]}"
    assert "Traceback" not in err and "Error executing job" not in err, err[-3000:]
    errors = [line for line in err.splitlines() if line.startswith("genlab: ")]
    if code == 2:
        assert len(errors) == 1 and err.splitlines()[-1] == errors[0], err[-3000:]
        assert errors[0].isprintable() and 10 < len(errors[0]) < 2000, errors[0]


@pytest.fixture
def command_line(train_run: Callable, tmp_path: Path) -> Callable[[str, str], list[str]]:
    """`command_line(command, override)` returns all arguments, with the runs that they name."""

    def create(name: re.Match) -> str:
        if name[1] == "sweep":
            SweepFolder(tmp_path / "sweep").add_jobs(
                ["train", "-m", "seed=0,1"], 0, [["seed=0"], ["seed=1"]], sweeper="basic"
            )
            return str(tmp_path / "sweep")
        return str(train_run(*RUNS[name[1]]))

    return lambda command, override: [
        command,
        *(re.sub(r"{(\w+)}", create, word) for word in COMMAND_LINES[command]),
        override,
    ]


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(i, marks=pytest.mark.slow if i % 18 else pytest.mark.xdist_group("fuzz"))
        for i in range(NUM_CASES)
    ],
)
def test_a_random_override_succeeds_or_is_refused(
    case, command_line, request, genlab: Callable, tmp_path: Path
):
    line = command_line(*random_cases()[case])
    # from here on: a run that is used may have to be trained first
    request.getfixturevalue("resource_limits")
    result = genlab(*line)
    check_result(result.code, result.err)
    assert not list(tmp_path.rglob("marker"))


@pytest.mark.slow
@pytest.mark.parametrize("case", range(0, NUM_CASES, 19))
def test_a_random_override_in_a_new_process(case, command_line, tmp_path: Path):
    if "\0" in random_cases()[case][1]:
        pytest.skip("a process's arguments cannot contain NUL")
    line = [word.encode("utf-8", "replace") for word in command_line(*random_cases()[case])]
    line = [sys.executable, "-m", "genlab", *line]
    process = subprocess.run(line, cwd=tmp_path, capture_output=True, timeout=120, check=False)
    check_result(process.returncode, process.stderr.decode())


@pytest.mark.xdist_group("fuzz")
def test_the_cases_cover_all_commands():
    cases = random_cases()
    assert len(cases) >= 500 and len(set(cases)) > 450
    assert {command for command, _ in cases} == set(COMMAND_LINES) == set(COMMANDS)
