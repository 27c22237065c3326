"""The command line under mutated overrides: each ends with 0 or 2, soon, in one readable line and without a traceback."""

from __future__ import annotations

import random
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from genlab.commands import COMMANDS, LISTS
from genlab.sweeps.sweep_folder import SweepFolder

SECONDS = 10
ROOM = (
    6 * 2**30
)  # bytes that a command may ask for beyond what the process has: nothing here may need them
SMALL = ("model=vae", "model.hidden=[4]", "model.latent=2")
FEW = (
    "trainer.steps=1",
    "trainer.max_time=1e-9",
    "trainer.batch_size=4",
    "trainer.preview_every=0",
    "device=cpu",
)
FAKE = ("dataset@dataset.of=fake", "dataset.of.shape=[3,8,8]")
RUNS = {  # what is asked, as small as it can be
    "vae": SMALL,
    "cvae": ("model=cvae", "model.hidden=[4]"),
    "dae": ("model=dae", "model.hidden=[4]"),
    "text": ("model=gpt_text", "model.layers=1", "model.heads=2", "model.width=16"),
    "style": ("model=stylegan2", "model.maps=8", "model.latent=12", "model.layers=2"),
    "colour": ("model=pix2pix", "model.width=2", "dataset.operator=grey", *FAKE),
    "larger": ("model=srresnet", "model.width=4", "model.blocks=1", "prepare.size=16"),
    "films": ("model=next_frame", "model.width=[2,2,2,2]", "model.adversarial=0"),
}
MADE = ("out=made", "device=cpu")
LINES: dict[
    str, tuple[str, ...]
] = {  # each command with what makes it end at once where an override changes nothing of it
    "train": (*SMALL, *FEW, "out=new"),
    "plan": (*SMALL, *FEW),
    "sample": ("run={vae}", "n=2", *MADE),
    "complete": ("run={text}", "n=2", *MADE),
    "reconstruct": ("run={vae}", "n=2", *MADE),
    "encode": ("run={vae}", "n=2", *MADE),
    "interpolate": ("run={vae}", *MADE),
    "traverse": ("run={vae}", "n=1", "frames=2", *MADE),
    "arithmetic": ("run={vae}", "a=1", "b=2", "n=50", *MADE),
    "mix": ("run={style}", "rows=1", "columns=1", *MADE),
    "project": ("run={vae}", "n=1", "steps=1", "tries=1", *MADE),
    "inpaint": ("run={vae}", "n=1", "steps=1", *MADE),
    "denoise": ("run={dae}", "n=2", *MADE),
    "translate": ("run={colour}", "n=1", *MADE),
    "colorize": ("run={colour}", "n=1", *MADE),
    "superres": ("run={larger}", "n=1", *MADE),
    "forecast": ("run={films}", "n=1", "films=1", *MADE),
    "evaluate": ("run={vae}", "n=8", "k=1", "metrics=[reconstruction]", "device=cpu"),
    "likelihood": ("run={vae}", "n=2", "k=1", *MADE),
    "anomaly": ("run={vae}", "classes=1", "n=2", "k=1", *MADE),
    "classify": ("run={cvae}", "n=2", "k=1", *MADE),
    "compare": ("runs=[{vae}]", "n=8", "k=1", "metrics=[reconstruction]", "out=page", "device=cpu"),
    "tasks": ("run={vae}",),
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
    "dataset@dataset.of",
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


def leaves(node: object, path: str = "") -> Iterator[str]:
    """Yield the dotted keys of a config, those of its mappings among them."""
    if isinstance(node, DictConfig):
        for key in node:
            inside = f"{path}.{key}" if path else str(key)
            yield inside
            yield from leaves(node._get_node(key), inside)


def options(command: str) -> list[str]:
    """Return the keys that a command's composed config has, or those that are words of its own."""
    if command in LISTS:
        return ["metric", "higher", "n"]  # of genlab sweep best
    OmegaConf.register_new_resolver("genlab.stamp", lambda: "stamp", replace=True)
    OmegaConf.register_new_resolver("genlab.folder", lambda *names: "-".join(names), replace=True)
    GlobalHydra.instance().clear()
    with initialize_config_module("genlab.configs", version_base="1.3"):
        return list(leaves(compose(command)))


def misspelt(chance: random.Random, word: str) -> str:
    """Return a word with a character more, less or other."""
    at = chance.randrange(len(word))
    return chance.choice(
        [
            word[:at] + word[at + 1 :],
            word[:at] + chance.choice("xZ_.é[") + word[at:],
            word.upper(),
            word + ".x",
        ]
    )


def mutated(n: int, seed: int = 0) -> list[tuple[str, str]]:
    """Return n pairs of a command and an override (or a flag) that was never meant."""
    chance = random.Random(seed)
    known = {command: options(command) for command in LINES}
    found = []
    for i in range(n):
        command = chance.choice([*LINES, "train", "train"])
        if i % 12 == 11:
            found.append((command, chance.choice(FLAGS)))
            continue
        key = chance.choice(known[command])
        if i % 6 == 4:
            key = chance.choice(KEYS)
        if i % 6 == 5:
            key = misspelt(chance, key)
        prefix = chance.choice(["", "", "", "", "+", "++", "~"])
        value = chance.choice(chance.choice(VALUES))
        found.append((command, chance.choice([f"{prefix}{key}={value}"] * 9 + [f"{prefix}{key}"])))
    return found


CASES = mutated(560)


class TookTooLong(BaseException):
    pass


@pytest.fixture
def bounded() -> Iterator[None]:
    """Stop what takes more than SECONDS of the processor, and let no allocation succeed that nothing here may need."""

    def late(*_: object) -> None:
        raise TookTooLong

    before, limits = signal.signal(signal.SIGPROF, late), resource.getrlimit(resource.RLIMIT_AS)
    pages = (
        int(Path("/proc/self/statm").read_text().split()[0])
        if Path("/proc/self/statm").exists()
        else 0
    )
    if pages:
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + ROOM, limits[1]))
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    yield
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.signal(signal.SIGPROF, before)
    resource.setrlimit(resource.RLIMIT_AS, limits)


def check(code: int, err: str) -> None:
    """Whatever was asked, it was done, or refused in one line."""
    assert code in (0, 2), f"exit code {code}\n{err[-3000:]}"
    assert "Traceback" not in err and "Error executing job" not in err, err[-3000:]
    said = [line for line in err.splitlines() if line.startswith("genlab: ")]
    if code == 2:
        assert len(said) == 1 and err.splitlines()[-1] == said[0], err[-3000:]
        assert said[0].isprintable() and 10 < len(said[0]) < 2000, said[0]


@pytest.fixture
def words(trained: Callable, tmp_path: Path) -> Callable[[str, str], list[str]]:
    """`words(command, override)`: the whole line, with the runs and the sweep that it names."""

    def made(name: re.Match) -> str:
        if name[1] == "sweep":
            SweepFolder(tmp_path / "sweep").extend(
                ["train", "-m", "seed=0,1"], 0, [["seed=0"], ["seed=1"]], sweeper="basic"
            )
            return str(tmp_path / "sweep")
        return str(trained(*RUNS[name[1]]))

    return lambda command, override: [
        command,
        *(re.sub(r"{(\w+)}", made, word) for word in LINES[command]),
        override,
    ]


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(i, marks=() if i % 9 == 0 else pytest.mark.slow, id=f"{i}-{command}")
        for i, (command, _) in enumerate(CASES)
    ],
)
def test_any_override_is_done_or_refused(case, words, request, genlab: Callable, tmp_path: Path):
    line = words(*CASES[case])
    request.getfixturevalue(
        "bounded"
    )  # from here on: a run that is asked may have to be trained first
    result = genlab(*line)
    check(result.code, result.err)
    assert not list(tmp_path.rglob("marker"))


@pytest.mark.slow
@pytest.mark.parametrize("case", range(0, len(CASES), 19))
def test_any_override_of_a_process(case, words, tmp_path: Path):
    if "\0" in CASES[case][1]:
        pytest.skip("no process can be given a NUL")
    line = [word.encode("utf-8", "replace") for word in words(*CASES[case])]
    line = [sys.executable, "-m", "genlab", *line]
    ended = subprocess.run(line, cwd=tmp_path, capture_output=True, timeout=120, check=False)
    check(ended.returncode, ended.stderr.decode())


def test_what_is_mutated_is_what_there_is():
    assert len(CASES) >= 500 and len(set(CASES)) > 450
    assert {command for command, _ in CASES} == set(LINES) == {*COMMANDS, *LISTS}
