"""The wheel holds the configs and works in another folder; pyproject.toml says what is in the tree."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy so that no build folder is left in the checkout."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("genlab", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, source)
    command = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(out),
        str(source),
    ]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    return next(out.glob("genlab-*.whl"))


def test_configs_are_in_the_wheel(wheel: Path) -> None:
    """Every YAML file and every module of the checkout is in it."""
    inside = set(zipfile.ZipFile(wheel).namelist())
    for path in (ROOT / "configs").rglob("*.yaml"):
        assert f"genlab/configs/{path.relative_to(ROOT / 'configs')}" in inside
    for path in (ROOT / "genlab").rglob("*.py"):
        assert str(path.relative_to(ROOT)) in inside


def test_wheel_works_elsewhere(wheel: Path, tmp_path: Path) -> None:
    """Unpacked in another folder, it composes from there, with nothing of this checkout."""
    site, cwd = tmp_path / "site", tmp_path / "elsewhere"
    cwd.mkdir()
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--no-deps",
        "--no-index",
        "--target",
        str(site),
        str(wheel),
    ]
    subprocess.run(install, check=True, capture_output=True)
    # An editable install has a finder of its own, which would answer for what the wheel lacks: take it out first.
    code = (
        "import sys\n"
        "sys.meta_path[:] = [f for f in sys.meta_path if '__editable__' not in getattr(f, '__module__', '')]\n"
        f"sys.path[:] = [{str(site)!r}] + [p for p in sys.path if p not in ('', {str(ROOT)!r})]\n"
        "import genlab, genlab.configs, genlab.cli.main; print(genlab.__file__, *genlab.configs.__path__)\n"
        "sys.argv = ['genlab', 'train', '--cfg', 'job', 'model=realnvp_points']; genlab.cli.main.main()\n"
    )
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    said = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=env, capture_output=True, text=True, check=False
    )
    assert said.returncode == 0, said.stderr
    where, *lines = said.stdout.splitlines()
    assert all(Path(path).is_relative_to(site) for path in where.split())
    assert "  _target_: genlab.models.flow.realnvp.RealNVP" in lines
    assert not list(cwd.iterdir())


def test_packages_are_those_of_the_tree() -> None:
    """A new folder of modules is not forgotten in pyproject.toml."""
    found = {".".join(p.parent.relative_to(ROOT).parts) for p in (ROOT / "genlab").rglob("*.py")}
    assert sorted(PROJECT["tool"]["setuptools"]["packages"]) == sorted(found | {"genlab.configs"})


def test_every_dependency_has_its_reason() -> None:
    """Each dependency stands on a line of its own, with a comment."""
    text = (ROOT / "pyproject.toml").read_text()
    lists = [
        PROJECT["project"]["dependencies"],
        *PROJECT["project"]["optional-dependencies"].values(),
    ]
    for requirement in [one for some in lists for one in some]:
        assert re.search(rf'^ +"{re.escape(requirement)}", +# \w+', text, re.M), requirement
