"""The wheel works in another folder; pyproject.toml matches the tree."""

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
import yaml

import genlab

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy so that no build folder is left in the checkout."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("genlab", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir"]
    built = subprocess.run(
        [*command, str(out), str(source)], capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stdout + built.stderr
    return next(out.glob("genlab-*.whl"))


def test_wheel_contains_modules_configs_and_license(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for path in (ROOT / "configs").rglob("*.yaml"):
        assert f"genlab/configs/{path.relative_to(ROOT / 'configs')}" in names
    for path in (ROOT / "genlab").rglob("*.py"):
        assert str(path.relative_to(ROOT)) in names
    assert {"genlab/py.typed", "genlab/comparison/page.html"} <= names
    assert any(name.endswith("/LICENSE") for name in names)


def test_wheel_works_in_another_folder(wheel: Path, tmp_path: Path) -> None:
    """Installed in another folder, the wheel composes its own configs."""
    site, cwd = tmp_path / "site", tmp_path / "elsewhere"
    cwd.mkdir()
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target"]
    subprocess.run([*install, str(site), str(wheel)], check=True, capture_output=True)
    # The import finder of an editable install would supply what the wheel lacks, so remove it.
    code = (
        "import sys\n"
        "sys.meta_path[:] = [f for f in sys.meta_path\n"
        "                    if '__editable__' not in getattr(f, '__module__', '')]\n"
        f"checkout = ('', {str(ROOT)!r})\n"
        f"sys.path[:] = [{str(site)!r}] + [p for p in sys.path if p not in checkout]\n"
        "import genlab, genlab.configs, genlab.cli.main\n"
        "print(genlab.__file__, *genlab.configs.__path__)\n"
        "sys.argv = ['genlab', 'train', '--cfg', 'job', 'model=realnvp_points']\n"
        "genlab.cli.main.main()\n"
    )
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    completed = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=env, capture_output=True, text=True, check=False
    )
    assert completed.returncode == 0, completed.stderr
    paths, *lines = completed.stdout.splitlines()
    assert all(Path(path).is_relative_to(site) for path in paths.split())
    assert "  _target_: genlab.models.flow.realnvp.RealNVP" in lines
    assert not list(cwd.iterdir())


def test_listed_packages_are_those_of_the_tree() -> None:
    found = {".".join(p.parent.relative_to(ROOT).parts) for p in (ROOT / "genlab").rglob("*.py")}
    assert sorted(PROJECT["tool"]["setuptools"]["packages"]) == sorted(found | {"genlab.configs"})


def all_requirements() -> list[str]:
    """Return the requirements of the build, of the package and of its extras."""
    extras = PROJECT["project"]["optional-dependencies"].values()
    return [*PROJECT["project"]["dependencies"], *(one for extra in extras for one in extra)]


def test_each_dependency_has_its_reason() -> None:
    """Each dependency has its own line, with a comment."""
    text = (ROOT / "pyproject.toml").read_text()
    for requirement in all_requirements():
        assert re.search(rf'^ +"{re.escape(requirement)}", +# \w+', text, re.M), requirement


def test_each_dependency_has_bounds() -> None:
    for requirement in [*all_requirements(), *PROJECT["build-system"]["requires"]]:
        assert "~=" in requirement or (">=" in requirement and "<" in requirement), requirement


def test_all_files_agree_on_the_version() -> None:
    """The package, the change log and the citation have one version number."""
    released = re.findall(r"^## \[([\d.]+)\] - (\S+)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    version, date = released[0]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert genlab.__version__ == version == str(citation["version"])
    assert date == str(citation["date-released"])
    assert PROJECT["project"]["dynamic"] == ["version"]


@pytest.mark.xdist_group("groups")
def test_processes_run_groups_of_tests(request: pytest.FixtureRequest) -> None:
    """pytest-xdist applies `xdist_group`: without it, fixtures of modules are made many times."""
    if getattr(request.config.option, "loadgroup", False):
        assert request.node.nodeid.endswith("@groups"), "pytest-xdist ignores xdist_group"
