"""The commands of README.md, of docs/ and of the recipes work as they are printed."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from helpers.cli_runner import REPOSITORY, run_here
from helpers.kinds import first_of_each_kind
from helpers.recipes import CONFIGS
from hydra.core.override_parser.overrides_parser import OverridesParser
from PIL import Image

from genlab.commands import COMMANDS
from genlab.metrics.registry import all_metrics_by_name
from genlab.models.boltzmann import rbm

MAX_README_LINES = 200
MAX_README_COLUMNS = 200
README = REPOSITORY / "README.md"
PAGES = [README, REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]


def fenced_blocks(page: Path) -> list[tuple[str, str]]:
    """Return (language, text) of each fenced block of a page."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.S | re.M)


def fenced_commands(page: Path) -> list[str]:
    """Return the shell commands in the blocks of a page without a language, in order."""
    lines = [line for kind, text in fenced_blocks(page) if not kind for line in text.splitlines()]
    return [command for line in lines if (command := line.partition("#")[0].strip())]


def inline_commands(page: Path) -> list[str]:
    """Return the complete `genlab …` commands in the text and tables of a page."""
    found = re.findall(r"`(genlab \w+ [^`…<:]*=[^`…<:]*)`", page.read_text())
    return [part for command in found for part in command.split(" && ")]


def recipe_commands() -> list[str]:
    """Return the `genlab train` commands in the comments of the recipes."""
    return [
        match.group().strip()
        for path in CONFIGS.rglob("*.yaml")
        for line in path.read_text().splitlines()
        if "…" not in line  # stands for a folder of the reader's
        for match in re.finditer(r"(?<=# )genlab train (?:[\w/.=\[\],@+-]+ ?)+", line)
    ]


def is_complete(command: str) -> bool:
    """Whether a command is a genlab command without a placeholder."""
    return bool(re.match(r"(genlab|torchrun\b.* genlab) ", command)) and "<" not in command


def distinct(commands: Iterable[str]) -> list[str]:
    """Return the commands without those that differ from another one only in numbers."""
    numbers = re.compile(r"(?<==)[\d.,e\[\]+-]+(?=\s|$)")
    return sorted({numbers.sub("0", command): command for command in commands}.values())


README_COMMANDS = fenced_commands(README)
PAGE_COMMANDS = [
    command
    for page in PAGES
    for command in [*fenced_commands(page), *inline_commands(page)]
    if is_complete(command)
]
ALL_COMMANDS = distinct([*PAGE_COMMANDS, *recipe_commands()])


def with_new_words(commands: Iterable[str]) -> set[str]:
    """Return the commands with an option, a choice or a value that none before them has."""
    seen: set[str] = set()
    found = set()
    for command in commands:
        words = {re.sub(r"=[\d.,e\[\]+-]+$", "=0", word) for word in shlex.split(command)}
        if words - seen:
            found.add(command)
        seen |= {*words}
    return found


COMMANDS_WITH_NEW_WORDS = with_new_words(ALL_COMMANDS)


def words_of(command: str) -> list[str]:
    """Return the words of a command after `genlab`, without `device=cuda`."""
    words = shlex.split(command)
    return [word for word in words[words.index("genlab") + 1 :] if word != "device=cuda"]


def first_job(words: list[str]) -> list[str]:
    """Return the words of the first job of a sweep; other words are returned as they are."""
    if "-m" not in words:
        return words
    overrides = [w for w in words[1:] if "=" in w and not re.match(r"hydra[./]", w)]
    parsed = OverridesParser.create().parse_overrides(overrides)
    first = [
        f"{o.get_key_element()}={next(o.sweep_string_iterator())}"
        if o.is_discrete_sweep()
        else o.input_line
        for o in parsed
        if o.is_discrete_sweep() or not o.is_sweep_override()
    ]
    return [words[0], *first]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A reader's folder with the model of the README's last section, and with samples."""
    here = tmp_path_factory.mktemp("readme")
    model, recipe = [text for kind, text in fenced_blocks(README) if kind in ("python", "yaml")]
    (here / "my_model.py").write_text(model)
    (here / "my_configs" / "model").mkdir(parents=True)
    (here / "my_configs" / "model" / "gaussian.yaml").write_text(recipe)
    noise = np.random.default_rng(0)
    x = noise.integers(0, 256, (200, 8, 8, 1), dtype=np.uint8)
    np.savez(here / "generated.npz", x=x)
    film = [Image.fromarray(noise.integers(0, 256, (8, 8), dtype=np.uint8)) for _ in range(3)]
    film[0].save(here / "film.gif", save_all=True, append_images=film[1:], duration=[50, 80, 110])
    for name in ("restored", "originals"):
        (here / name).mkdir()
        image = Image.fromarray(noise.integers(0, 256, (32, 32, 3), dtype=np.uint8))
        image.save(here / name / "a.png")
    return here


# --- the README -----------------------------------------------------------------------------------


def test_readme_is_short():
    lines = README.read_text().splitlines()
    assert len(lines) <= MAX_README_LINES
    assert max(map(len, lines)) <= MAX_README_COLUMNS


def test_readme_starts_with_two_commands():
    assert [c.split()[0] for c in README_COMMANDS[:2]] == ["scripts/demo.sh", "scripts/test.sh"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_lead_to_files(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)$", linked.read_text(), re.M)
            anchors = {re.sub(r"[^\w-]", "", t.lower().replace(" ", "-")) for t in titles}
            assert anchor in anchors, target


@pytest.mark.parametrize(
    "script",
    sorted(
        {s for page in PAGES for s in re.findall(r"scripts/[\w/]+\.(?:sh|py)", page.read_text())}
    ),
)
def test_scripts_named_by_pages_exist_and_parse(script):
    path = REPOSITORY / script
    if path.suffix == ".sh":
        subprocess.run(["bash", "-n", path], check=True)
        assert path.stat().st_mode & 0o100, f"{script} is not executable"
    else:
        compile(path.read_text(), str(path), "exec")


def test_metrics_page_names_every_metric():
    page = (REPOSITORY / "docs" / "metrics.md").read_text()
    assert not [name for name in all_metrics_by_name() if f"`{name}`" not in page]


# --- the commands ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    first_of_each_kind(
        ALL_COMMANDS, lambda command: command if command in COMMANDS_WITH_NEW_WORDS else ""
    ),
)
def test_command_composes(command, folder):
    """Each printed command names existing options; `--cfg job` composes it without running it."""
    words = first_job(words_of(command))
    name = words[0]
    assert name in COMMANDS, command
    if "--help" in words or not COMMANDS[name].composed:
        return
    if name == "compare":
        words = [word for word in words if "=" in word or word == name]  # without its folders
    result = run_here(*words, "--cfg", "job", cwd=folder)
    assert result.code == 0, result.err


# So that minutes become seconds.
SMALL = (
    "trainer.steps=2",
    "trainer.batch_size=8",
    "trainer.preview_every=0",
    "device=cpu",
    "device.compile=false",
)
# Numbers that make a command long, and shorter ones for the test.
SHORTER = {
    "trainer.steps=30000": "trainer.steps=4",
    "trainer.num_pairs=2000": "trainer.num_pairs=16",
    "n=20": "n=4",
}
DATA_SETS = ("mnist", "celeba", "cifar10")  # they have to be downloaded
# These need a cluster or take long; tests/sweeps and tests/distributed run commands like them.
NOT_RUN = ("hydra/launcher=slurm", "torchrun", "optuna", "vae_search")


def small_words(command: str) -> list[str]:
    """Return the words of a command with settings that let it end within seconds."""
    words = [SHORTER.get(word, word) for word in words_of(command)]
    if words[0] in ("train", "plan") and "resume=" not in command:
        keys = [word.partition("=")[0] for word in words]
        words += [w for w in SMALL if w.partition("=")[0] not in keys or "trainer.steps" in w]
    if words[0] in ("evaluate", "compare") and not re.search(r"\bn=", command):
        words.append("n=50")
    if words[0] in ("evaluate", "compare") and "elbo_timesteps=" not in command:
        words.append("elbo_timesteps=5")
    return words


def run_commands(commands: list[str], folder: Path) -> None:
    """Run commands in order, without those that need a download and those of NOT_RUN."""
    for command in commands:
        needs_data = any(name in command for name in DATA_SETS)
        if not is_complete(command) or needs_data or any(word in command for word in NOT_RUN):
            continue
        result = run_here(*small_words(command), cwd=folder)
        assert result.code == 0, f"{command}\n{result.err}"


def readme_section(title: str) -> list[str]:
    """Return the commands of one section of the README."""
    section = README.read_text().partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"^```\n(.*?)^```$", section, re.S | re.M)
    return [line.partition("#")[0].strip() for text in blocks for line in text.splitlines()]


@pytest.mark.xdist_group("readme")
@pytest.mark.parametrize("title", ["Five commands to try", "Add your own model"])
def test_readme_commands_run_in_order(title, folder):
    commands = readme_section(title)
    assert len(commands) >= 2
    run_commands(commands, folder)


@pytest.mark.slow
def test_documented_commands_run_in_order(folder, monkeypatch):
    """Every command of docs/commands.md runs, on the runs that the commands before it made."""
    exact = rbm.ais_log_partition
    few = {"num_temperatures": 50}
    monkeypatch.setattr(rbm, "ais_log_partition", lambda *a, **options: exact(*a, **options | few))
    run_commands(fenced_commands(REPOSITORY / "docs" / "commands.md"), folder)
    run_commands(fenced_commands(REPOSITORY / "docs" / "metrics.md"), folder)


def test_completion_command_works_in_bash():
    (line,) = [c for page in PAGES for c in fenced_commands(page) if c.startswith("eval")]
    script = line.replace("genlab completion", f"{sys.executable} -m genlab completion")
    completed = subprocess.run(
        [shutil.which("bash"), "-c", f"{script}; complete -p genlab"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "_genlab" in completed.stdout, completed.stderr
