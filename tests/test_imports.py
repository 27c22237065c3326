"""Imports run one way: cli -> build -> tasks, families, data, training -> abilities, spec. Read, not run."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent / "genlab"
FOUNDATION = ("genlab.spec", "genlab.errors", "genlab.abilities", "genlab.seeds")
FAMILIES = sorted(p.name for p in (ROOT / "models").iterdir() if (p / "__init__.py").exists())
FILES = sorted(ROOT.rglob("*.py"))


def module(path: Path) -> str:
    """Return the dotted name of a file."""
    return ".".join(["genlab", *path.relative_to(ROOT).with_suffix("").parts]).removesuffix(".__init__")


def imports(path: Path) -> set[str]:
    """Return every name that a file imports at run time, inside functions too, as full dotted names."""
    found: set[str] = set()

    def walk(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.orelse:
                walk(child)
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import hides its direction"
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            walk(child)

    walk(ast.parse(path.read_text()))
    return found


def under(name: str, *packages: str) -> bool:
    """Return whether a dotted name is one of the packages or something in it."""
    return any(name == package or name.startswith(package + ".") for package in packages)


def may(name: str) -> tuple[str, ...]:
    """Return what of genlab a module may import."""
    if name in FOUNDATION or name == "genlab":
        return ("genlab.errors",)
    part = name.split(".")[1]
    if part == "nn":
        return ("genlab.nn",)
    if part == "models":
        family = ".".join(name.split(".")[:3])
        training = ("genlab.training",) if name.endswith("trainer") else ()
        return ("genlab.nn", *FOUNDATION, family, *training)
    if part == "data":
        return ("genlab.data", "genlab.spec", "genlab.errors", "genlab.seeds")
    if part == "metrics":
        return ("genlab.metrics", "genlab.data", *FOUNDATION)
    if part == "training":
        return ("genlab.training", *FOUNDATION)
    if part == "arguments":
        return ("genlab.errors",)
    if part == "sweeps":
        return ("genlab.sweeps", "genlab.training", "genlab.arguments", "genlab.tasks.tables", *FOUNDATION)
    if part == "comparison":
        return ("genlab.comparison", "genlab.training", "genlab.tasks.tables", "genlab.__version__", *FOUNDATION)
    if part == "tasks":
        parts = ("tasks", "sweeps", "comparison", "metrics", "training", "data", "arguments", "words", "__version__")
        return (*(f"genlab.{p}" for p in parts), *FOUNDATION)
    if part in ("build", "objects", "resume"):
        return ("genlab",)
    if part in ("words", "refusals"):
        return ("genlab.errors", "genlab.words")
    own = ("build", "tasks", "words", "refusals", "sweeps", "errors", "__version__")
    own += ("training.ranks", "training.watch", "training.world")
    return tuple(f"genlab.{p}" for p in own)


@pytest.mark.parametrize("path", FILES, ids=module)
def test_directions(path: Path) -> None:
    """No file imports against the direction."""
    name = module(path)
    ours = {i for i in imports(path) if under(i, "genlab")}
    if name == "genlab.__main__":
        assert ours == {"genlab.cli.main"}
        return
    allowed = may(name)
    if name in ("genlab.build", "genlab.objects", "genlab.resume"):
        assert not [i for i in ours if under(i, "genlab.cli", "genlab.models")], "a config names the family"
    assert not [i for i in ours if not under(i, *allowed)], f"{name} may import of genlab only {', '.join(allowed)}"


@pytest.mark.parametrize("path", FILES, ids=module)
def test_hydra_in_few_files(path: Path) -> None:
    """Only cli.py, build.py and the sweeps' launchers and sweeper, which only a sweep imports, know that there is Hydra."""
    found = {i for i in imports(path) if under(i, "hydra", "hydra_plugins", "omegaconf")}
    plugins = ("genlab.sweeps.launchers", "genlab.sweeps.search", "genlab.sweeps.space")
    assert not found or module(path) in ("genlab.cli", "genlab.build", *plugins)


LIGHT = ("spec", "errors", "abilities", "seeds", "arguments", "cli", "words", "refusals", "training/watch", "training/world")


@pytest.mark.parametrize("name", LIGHT)
def test_light(name: str) -> None:
    """What the command line needs before there is work imports no torch."""
    assert not [i for i in imports(ROOT / f"{name}.py") if under(i, "torch", "torchvision", "numpy")]


def test_bricks_are_torch_only() -> None:
    """genlab/nn has nothing but torch and the standard library in it."""
    known = ("torch", "math", "typing", "collections", "functools", "itertools", "__future__", "genlab.nn")
    for path in sorted((ROOT / "nn").glob("*.py")):
        assert not [i for i in imports(path) if not under(i, *known)], path.name


def test_families() -> None:
    """The five families are there, and every file of one is a module of its package."""
    assert {"vae", "gan", "flow", "boltzmann", "diffusion"} <= set(FAMILIES)
