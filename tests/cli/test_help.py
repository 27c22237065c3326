"""`genlab <command> --help` lists every option of a command with its meaning and type."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

import pytest
from annotated_types import Ge, Gt, Le
from helpers.recipes import CONFIGS, RECIPES

from genlab.cli import help as cli_help
from genlab.cli.main import usage_text
from genlab.commands import COMMANDS
from genlab.config.option_docs import (
    describe_type,
    docstring_arguments,
    read_option_comments,
    read_yaml_comments,
    trailing_comment,
)

COMPOSED = [name for name, command in COMMANDS.items() if command.composed]
OPTION = re.compile(r"  ([\w.@/]+)=(\S*)")


@pytest.fixture(autouse=True)
def narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Print for 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")


@pytest.mark.parametrize("command", COMPOSED)
def test_every_command_shows_its_options_at_80_columns(genlab, command: str) -> None:
    """The help names the command's options, explains each, and fits the terminal."""
    result = genlab(command, "--help")
    assert result.code == 0, result.err
    assert max(map(len, result.out.splitlines())) <= 80
    assert f"usage: genlab {command} " in result.out
    options = OPTION.findall(result.out)
    assert len(options) > 2
    config = (CONFIGS / f"{command}.yaml").read_text()
    top_level = set(re.findall(r"^(\w+):", config, re.MULTILINE)) - {"defaults", "hydra"}
    shown = {name.partition(".")[0] for name, _ in options}
    assert top_level <= shown


def undocumented_options(command: str, *overrides: str) -> list[str]:
    """Return the names of the options of a command that lack a description."""
    config, groups = cli_help.compose_options(command, list(overrides))
    meanings = read_option_comments(command, groups)
    return [
        option.name
        for _, options in cli_help.option_sections(command, config, meanings)
        for option in options
        if not option.meaning
    ]


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_option_of_a_recipe_has_a_meaning(recipe: str) -> None:
    """The options of each recipe and its trainer are explained in YAML or a docstring."""
    assert undocumented_options("train", f"model={recipe}") == []


@pytest.mark.parametrize("command", [name for name in COMPOSED if name not in ("train", "plan")])
def test_every_option_of_a_command_has_a_meaning(command: str) -> None:
    """The options of each command that loads a run are explained in its YAML."""
    assert undocumented_options(command) == []


DATASETS = sorted(p.stem for p in (CONFIGS / "dataset").glob("*.yaml"))


@pytest.mark.parametrize("dataset", DATASETS)
def test_every_option_of_a_dataset_has_a_meaning(dataset: str) -> None:
    """The options of each dataset are explained in its YAML or a docstring."""
    options = undocumented_options("train", f"dataset={dataset}")
    assert [name for name in options if name.startswith("dataset")] == []


def test_help_lists_the_options_of_the_chosen_model(genlab) -> None:
    """The options are those of the model given beside --help."""
    gan = genlab("train", "model=dcgan", "--help").out
    vae = genlab("train", "--help").out
    assert "trainer.d_steps=1" in gan and "trainer.d_steps" not in vae
    assert "trainer.kl_warmup" in vae and "trainer.kl_warmup" not in gan


def test_help_shows_a_users_recipe(genlab, tmp_path: Path) -> None:
    """A group file in --config-dir is listed among the choices, with its options."""
    folder = tmp_path / "confs" / "model"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text(
        "# @package _global_\n"
        "model:\n  _target_: genlab.models.vae.vae.VAE\n  latent: 7 # my size\n"
    )
    out = genlab("train", "--config-dir", "confs", "model=mine", "--help").out
    assert "model.latent=7" in out and "my size" in out
    assert "mine" in out.partition("General")[0]


def test_unknown_choice_beside_help_is_refused_in_one_line(genlab) -> None:
    """A mistake is reported with --help as it is without."""
    assert "model=vea does not exist" in genlab("train", "model=vea", "--help").error


@pytest.mark.parametrize(
    ("hint", "text"),
    [
        (int, "int"),
        (bool, "true | false"),
        (Annotated[int, Ge(1)], "int ≥ 1"),
        (Annotated[float, Gt(0), Le(1)], "number > 0 ≤ 1"),
        (Literal["linear", "cosine"], "linear | cosine"),
        (str | None, "text or null"),
        (list[Annotated[int, Gt(0)]], "list of int > 0"),
        (tuple[float, float], "list of number"),
        (dict[str, int], "mapping"),
    ],
)
def test_describe_type(hint: object, text: str) -> None:
    """Type hints are described with their ranges and choices."""
    assert describe_type(hint) == text


def test_read_comments(tmp_path: Path) -> None:
    """Comments beside and above a key count; a `#` in quotes or a header does not."""
    path = tmp_path / "x.yaml"
    path.write_text(
        "# The header.\n\n"
        "a: 1  # beside\n"
        "b:\n"
        "  # above\n"
        "  c: 'x # y'\n"
        "  d: '#1'   # after quotes\n"
        "e: 2\n"
    )
    assert read_yaml_comments(path, "model") == {
        "model.a": "beside",
        "model.b.c": "above",
        "model.b.d": "after quotes",
    }
    assert trailing_comment(" a#b") == ""


def test_describe_arguments() -> None:
    """Args sections are read from the class and its bases, also over several lines."""

    class Base:
        """A base.

        Args:
            a: first.
        """

    class Derived(Base):
        """A class.

        Args:
            b: second,
                continued.

        Raises:
            ValueError: never.
        """

    assert docstring_arguments(Derived) == {"a": "first.", "b": "second, continued."}


def test_the_list_of_commands_is_wrapped_between_words_on_a_narrow_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = usage_text().splitlines()
    assert max(map(len, lines)) <= 80
    monkeypatch.setenv("COLUMNS", "300")
    assert f"  {'train':<13}{COMMANDS['train'].help}" in usage_text().splitlines()
    assert " ".join(" ".join(lines).split()) == " ".join(usage_text().split())
