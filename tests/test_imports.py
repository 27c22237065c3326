"""Imports go one way, from the command line down to the base modules.

The files are parsed, not run.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent / "genlab"
FILES = sorted(ROOT.rglob("*.py"))
# A module may import from its own package and from packages of a lower level.
LEVELS = {
    "__main__": 10,
    "cli": 9,
    "builders": 8,
    "commands": 7, "models": 7,
    "inference": 6, "training": 6, "comparison": 6, "sweeps": 6,
    "runs": 5, "metrics": 5,
    "config": 4, "distributed": 4, "data": 4, "viz": 4,
    "abilities": 3, "batching": 3, "fileio": 3, "model": 3, "signals": 3, "untrusted": 3,
    "spec": 2,
    "console": 1, "errors": 1, "nn": 1, "seeding": 1, "tables": 1,
    "__version__": 0, "output_streams": 0, "system": 0,
}  # fmt: skip  # one level a line
HYDRA_PACKAGES = ("hydra", "hydra_plugins", "omegaconf")
# Modules outside the command line and the builders that Hydra itself loads in a sweep, and the one
# that confines Hydra.
HYDRA_MODULES = (
    "genlab.sweeps.hydra_launchers",
    "genlab.sweeps.hydra_sweepers",
    "genlab.sweeps.optuna_sweeper",
    "genlab.sweeps.search_space",
    "genlab.untrusted.hydra_sources",
)
# Modules that must load fast, because the command line imports them before it needs tensors.
TORCH_FREE = (
    "spec",
    "errors",
    "abilities",
    "seeding",
    "signals",
    "fileio",
    "untrusted/files",
    "untrusted/text",
    "untrusted/configs",
    "untrusted/hydra_sources",
    "untrusted/records",
    "cli",
    "config",
    "commands/__init__",
    "distributed/supervisor",
    "distributed/environment",
)


def module_name(path: Path) -> str:
    """Return the dotted name of a file."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(["genlab", *parts]).removesuffix(".__init__")


MODULES = {module_name(path): path for path in FILES}


def imported_names(path: Path, *, nested: bool = True) -> set[str]:
    """Return the full dotted name of each import of a file at run time.

    Imports inside functions are included if `nested`.
    """
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.orelse:
                visit(child)
            return
        if isinstance(node, ast.FunctionDef) and not nested:
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import hides its direction"
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text()))
    return found


def imported_modules(path: Path) -> set[str]:
    """Return the modules of genlab that a file imports at run time."""
    names = {name for name in imported_names(path) if is_under(name, "genlab")}
    return {name if name in MODULES else name.rpartition(".")[0] for name in names}


def is_under(name: str, *packages: str) -> bool:
    """Whether a dotted name is one of the packages or inside one."""
    return any(name == package or name.startswith(package + ".") for package in packages)


def package(name: str) -> str:
    """Return the package of genlab that a module belongs to; each model family is one."""
    parts = name.split(".")[1:] or ["__version__"]
    return ".".join(parts[:2]) if parts[0] == "models" else parts[0]


@pytest.mark.parametrize("name", MODULES)
def test_each_module_imports_lower_levels_only(name: str) -> None:
    """A module imports only from its own package and from lower levels.

    The table of levels must cover every package.
    """
    level = LEVELS[package(name).split(".")[0]]
    upward = [
        other
        for other in imported_modules(MODULES[name])
        if package(other) != package(name) and LEVELS[package(other).split(".")[0]] >= level
    ]
    assert not upward, f"{name} (level {level}) imports {', '.join(upward)}"


def test_imports_have_no_cycles() -> None:
    """No module imports itself indirectly; imports inside functions count too."""
    graph = {name: imported_modules(path) - {name} for name, path in MODULES.items()}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail[trail.index(name) :], name))
        if name not in done:
            for other in graph.get(name, ()):
                visit(other, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())


@pytest.mark.parametrize("name", MODULES)
def test_hydra_is_imported_in_few_modules(name: str) -> None:
    """Only the command line, the builders and a sweep's plugins import Hydra."""
    found = {other for other in imported_names(MODULES[name]) if is_under(other, *HYDRA_PACKAGES)}
    assert not found or is_under(name, "genlab.cli", "genlab.builders", *HYDRA_MODULES)


@pytest.mark.parametrize("module", TORCH_FREE)
def test_startup_modules_do_not_import_torch(module: str) -> None:
    """Modules that every command imports do not import torch or numpy at the top level."""
    path = ROOT / f"{module}.py"
    for file in [path] if path.exists() else sorted((ROOT / module).glob("*.py")):
        names = imported_names(file, nested=False)
        heavy = [name for name in names if is_under(name, "torch", "torchvision", "numpy")]
        assert not heavy, file


def test_layers_import_only_torch() -> None:
    """genlab/nn imports torch and the standard library only."""
    standard = ("math", "typing", "collections", "functools", "itertools", "__future__")
    standard += ("contextlib",)
    known = ("torch", "genlab.nn", *standard)
    for path in sorted((ROOT / "nn").glob("*.py")):
        assert not [name for name in imported_names(path) if not is_under(name, *known)], path.name


def test_models_are_grouped_by_family() -> None:
    """Each model family is a package."""
    families = {p.name for p in (ROOT / "models").iterdir() if (p / "__init__.py").exists()}
    expected = {"vae", "gan", "flow", "boltzmann", "diffusion", "autoregressive"}
    assert expected | {"classical", "autoencoder"} <= families
