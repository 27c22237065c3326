"""genlab on systems that these tests do not run on, and in terminals that lack something."""

from __future__ import annotations

import ast
import io
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.other_systems import MISSING_MODULES, MISSING_NAMES

from genlab import output_streams, system
from genlab.output_streams import LOST_OUTPUT, SafeStream, ascii_form, use_safe_streams

ROOT = Path(__file__).resolve().parent.parent / "genlab"
FILES = sorted(ROOT.rglob("*.py"))
OTHER_SYSTEMS = Path(__file__).parent / "helpers" / "other_systems.py"
POSIX_MODULES = {*MISSING_MODULES, "readline", "curses", "_posixsubprocess"}
SUSPECT = re.compile(
    rf"\b({'|'.join(POSIX_MODULES)})\b|"
    + "|".join(rf"\b({'|'.join(names)})\b" for names in MISSING_NAMES.values())
)
OPENS_TEXT = re.compile(r"open\(|read_text|write_text|text=|universal_newlines")
# Words of a condition, or of an error that is caught, that ask what the system has.
QUESTIONS = ("hasattr", "sys.platform", "os.name", " is None", " is not None", "ImportError")


# --- other systems, by reading the code -----------------------------------------------------------


def unguarded_uses(code: str) -> Iterator[str]:
    """Yield "line: name" of each module or name that Windows lacks and that no question guards."""
    if not SUSPECT.search(code):
        return
    tree = ast.parse(code)
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names if a.name.split(".")[0] in POSIX_MODULES]
        elif isinstance(node, ast.ImportFrom):
            of_module = MISSING_NAMES.get(node.module or "", ())
            names = [a.name for a in node.names if a.name in of_module]
            names += [node.module or ""] if node.module in POSIX_MODULES else []
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            of_module = MISSING_NAMES.get(node.value.id, ())
            names = [f"{node.value.id}.{node.attr}"] if node.attr in of_module else []
        if names and not is_guarded(node, parents):
            yield f"{node.lineno}: {', '.join(names)}"  # type: ignore[attr-defined]


def is_guarded(node: ast.AST, parents: dict[ast.AST, ast.AST]) -> bool:
    """Whether a question about the system is asked around a node, or answered before it."""
    while node in parents:
        parent = parents[node]
        text = ""
        if isinstance(parent, ast.If | ast.IfExp):
            text = ast.unparse(parent.test)
        elif isinstance(parent, ast.BoolOp):
            text = ast.unparse(parent)
        elif isinstance(parent, ast.Try):
            text = " ".join(ast.unparse(h.type) for h in parent.handlers if h.type)
        body = getattr(parent, "body", [])
        if isinstance(parent, ast.FunctionDef) and node in body:
            # an earlier `if not hasattr(…): return`
            for earlier in body[: body.index(node)]:
                if isinstance(earlier, ast.If) and isinstance(earlier.body[-1], ast.Return):
                    text += ast.unparse(earlier.test)
        if any(question in f" {text}" for question in QUESTIONS):
            return True
        node = parent
    return False


def test_names_that_windows_lacks_are_guarded() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{use}"
        for path in FILES
        for use in unguarded_uses(path.read_text(encoding="utf-8"))
    ]
    assert not found, "use genlab.system, or ask with hasattr: " + "; ".join(found)


@pytest.mark.parametrize(
    ("code", "is_found"),
    [
        ("import fcntl", True),
        ("from resource import getrusage", True),
        ("def f():\n    import pwd", True),
        ("x = os.O_NOFOLLOW", True),
        ("def f():\n    os.fork()", True),
        ("signal.signal(signal.SIGHUP, f)", True),
        ("from signal import SIGKILL", True),
        ("try:\n    import fcntl\nexcept ImportError:\n    fcntl = None", False),
        ("x = getattr(os, 'O_NOFOLLOW', 0)", False),
        ("if hasattr(os, 'fork'):\n    os.fork()", False),
        ("def f():\n    if not hasattr(os, 'fork'):\n        return\n    os.fork()", False),
        ("signal.SIGINT, os.kill", False),
    ],
)
def test_the_search_finds_unguarded_names(code: str, is_found: bool) -> None:
    assert bool(list(unguarded_uses(code))) == is_found


def text_calls_without_encoding(code: str) -> Iterator[int]:
    """Yield the lines where text is read or written in the encoding of the user's locale."""
    if not OPENS_TEXT.search(code):
        return
    for node in ast.walk(ast.parse(code)):
        if not isinstance(node, ast.Call):
            continue
        is_method = isinstance(node.func, ast.Attribute)
        name = node.func.attr if isinstance(node.func, ast.Attribute) else ast.unparse(node.func)
        options = {keyword.arg: keyword.value for keyword in node.keywords}
        if "encoding" in options:
            continue
        if is_method and name in ("read_text", "write_text"):
            yield node.lineno
        elif (name == "open" and not is_method) or name == "fdopen":
            mode = options.get("mode", node.args[1] if len(node.args) > 1 else None)
            if mode is None or (isinstance(mode, ast.Constant) and "b" not in mode.value):
                yield node.lineno
        elif name in ("run", "Popen", "check_output") and {"text", "universal_newlines"} & {
            *options
        }:
            yield node.lineno


def test_text_files_name_their_encoding() -> None:
    """Otherwise it would be that of the locale: cp1252 on Windows, ASCII in a bare container."""
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in FILES
        for line in text_calls_without_encoding(path.read_text(encoding="utf-8"))
    ]
    assert not found, 'encoding="utf-8" is missing: ' + ", ".join(found)


# --- other systems, by running the code -----------------------------------------------------------


def run_as(name: str, *arguments: str, cwd: Path, **environment: str) -> str:
    """Run genlab as on another system; return what it printed."""
    done = subprocess.run(
        [sys.executable, str(OTHER_SYSTEMS), name, *arguments],
        cwd=cwd, env=os.environ | environment, encoding="utf-8", timeout=300, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip  # one line of options
    assert done.returncode == 0, done.stdout
    return done.stdout


TINY = ("model=vae", "model.hidden=[8]", "trainer.steps=2", "trainer.batch_size=8", "device=cpu")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["windows", "macos"])
def test_training_starts_on_other_systems(name: str, tmp_path: Path) -> None:
    printed = run_as(name, "train", *TINY, "trainer.evaluate_every=2", "out=run", cwd=tmp_path)
    assert "trained 2 steps" in printed and "Traceback" not in printed
    assert (tmp_path / "run" / "checkpoints" / "step_000000002.pt").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["windows", "macos"])
@pytest.mark.parametrize(
    "command",
    [
        "sample run=run n=4",
        "evaluate run=run metrics=[likelihood,reconstruction]",
        "compare runs=[run]",
        "plan model=vae trainer.steps=3 trainer.evaluate_every=2",
        "models",
        "train resume=run trainer.steps=3",
        "train model=vae trainer.steps=2 trainer.batch_size=auto out=automatic device=cpu",
    ],
)
def test_commands_work_on_other_systems(name: str, command: str, train_run, tmp_path) -> None:
    import shutil

    shutil.copytree(train_run(*TINY), tmp_path / "run")
    assert "Traceback" not in run_as(name, *command.split(), cwd=tmp_path)


@pytest.mark.slow
def test_data_workers_can_be_spawned(tmp_path: Path) -> None:
    """macOS and Windows have no fork that is safe: workers import genlab anew."""
    import numpy as np
    from PIL import Image

    (tmp_path / "images").mkdir()
    for i in range(40):
        image = Image.fromarray(np.full((8, 8, 3), 6 * i, dtype=np.uint8))
        image.save(tmp_path / "images" / f"{i}.png")
    data = ("dataset=image_folder", "dataset.path=images", "dataset.size=8", "dataset.workers=1")
    printed = run_as(
        "macos", "train", *TINY, *data, "dataset.cache_in_memory=false", "out=run", cwd=tmp_path
    )
    assert "trained 2 steps" in printed and "workers failed" not in printed


@pytest.mark.parametrize(("platform", "factor"), [("linux", 1024), ("darwin", 1), ("aix", 1024)])
def test_peak_memory_is_bytes_everywhere(platform: str, factor: int, monkeypatch) -> None:
    class Usage:
        ru_maxrss = 300_000

    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(system.resource, "getrusage", lambda who: Usage)
    assert system.peak_memory_bytes() == 300_000 * factor
    monkeypatch.setattr(system, "STATM", Path("/nonexistent"))
    assert system.used_memory_bytes() == 300_000 * factor


def test_memory_of_unknown_systems(monkeypatch) -> None:
    assert system.physical_memory_bytes() > 2**28
    monkeypatch.delattr(os, "sysconf")
    monkeypatch.setattr(system, "resource", None)
    assert system.physical_memory_bytes() == system.UNKNOWN_MEMORY_BYTES
    assert system.peak_memory_bytes() == system.used_memory_bytes() == 0


def test_locks_without_fcntl(monkeypatch, tmp_path: Path) -> None:
    """Windows locks a byte behind the content, which stays readable, and moves nothing."""
    from types import ModuleType

    calls: list[int] = []

    def locking(handle: int, mode: int, count: int) -> None:
        calls.append(os.lseek(handle, 0, os.SEEK_CUR))
        if len(calls) > 1:
            raise PermissionError(13, "Permission denied")

    fake = ModuleType("msvcrt")
    fake.LK_NBLCK, fake.locking = 2, locking  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "msvcrt", fake)
    monkeypatch.setattr(system, "fcntl", None)
    with open(tmp_path / "lock", "w+b") as file:
        assert system.try_lock(file) and not system.try_lock(file, shared=True)
        assert calls == [system.LOCKED_BYTE] * 2 and file.tell() == 0
        assert not system.is_locked_over_nfs(file)


# --- folders that cannot be written ---------------------------------------------------------------


@pytest.mark.parametrize("broken", ["HOME", "XDG_CACHE_HOME", "GENLAB_CACHE", "no user"])
def test_cache_moves_to_a_temporary_folder_and_says_so_once(
    broken: str, monkeypatch, tmp_path: Path, capsys
) -> None:
    system.writable_cache_folder.cache_clear()
    for name in ("XDG_CACHE_HOME", "GENLAB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(system.tempfile, "tempdir", str(tmp_path))
    (tmp_path / "file").touch()
    if broken == "no user":

        def no_home() -> Path:
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.setattr(Path, "home", no_home)
    else:
        monkeypatch.setenv(broken, str(tmp_path / "file" / "below"))
    folders = {system.user_cache_folder() for _ in range(3)}
    system.writable_cache_folder.cache_clear()
    assert folders == {tmp_path / f"genlab-{os.getuid()}"}
    err = capsys.readouterr().err
    assert err.count("the cache is in") == 1 and "GENLAB_CACHE=" in err


def test_temporary_cache_of_another_user_is_not_trusted(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(system.tempfile, "tempdir", str(tmp_path))
    planted = tmp_path / f"genlab-{os.getuid()}"
    planted.mkdir()
    planted.chmod(0o777)
    assert system.private_temporary_folder() != planted
    planted.rmdir()
    planted.symlink_to(tmp_path / "elsewhere")
    assert system.private_temporary_folder() != planted


def test_what_cannot_be_cached_is_used_all_the_same(monkeypatch, tmp_path, capsys) -> None:
    from genlab.metrics import cache

    (tmp_path / "features").touch()  # a file in the place of the folder
    monkeypatch.setattr(cache, "user_cache_folder", lambda: tmp_path)
    assert cache.load_cached_or_compute("features", "key", lambda: {"x": 1}) == {"x": 1}
    assert "is not kept for the next time" in capsys.readouterr().err


@pytest.mark.parametrize("length", [10, 150])
def test_sockets_get_a_folder_with_a_short_path(length: int, monkeypatch) -> None:
    folder = "/" + "x" * length
    monkeypatch.setattr(system.tempfile, "tempdir", folder)
    system.use_short_temporary_folder()
    assert (system.tempfile.gettempdir() == folder) == (length == 10)


# --- standard output and error --------------------------------------------------------------------


class FailingStream(io.StringIO):
    """A stream whose first writes succeed."""

    def __init__(self, error: Exception, after: int = 0) -> None:
        super().__init__()
        self.error, self.left = error, after

    def write(self, text: str) -> int:
        self.left -= 1
        if self.left < 0:
            raise self.error
        return super().write(text)


ERRORS = [
    BrokenPipeError(32, "Broken pipe"),
    OSError(28, "No space left on device"),
    OSError(5, "Input/output error"),  # a terminal that was closed
    ValueError("I/O operation on closed file"),
]


@pytest.mark.parametrize("error", ERRORS, ids=str)
@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_training_outlives_a_stream_that_fails(
    error: Exception, name: str, genlab, tmp_path, monkeypatch
) -> None:
    from contextlib import redirect_stderr, redirect_stdout

    from helpers import cli_runner

    failing = FailingStream(error)
    redirect = redirect_stdout if name == "stdout" else redirect_stderr
    monkeypatch.setattr(cli_runner, f"redirect_{name}", lambda stream: redirect(failing))
    result = genlab("train", *TINY, "trainer.preview_every=0", "out=run")
    assert result.code == 0
    assert (tmp_path / "run" / "checkpoints" / "step_000000002.pt").exists()
    log = (tmp_path / "run" / "train.log").read_text(encoding="utf-8")
    assert ("trained 2 steps" if name == "stdout" else "step 2/2") in log
    assert "failed: " in log.splitlines()[0]


@pytest.mark.parametrize(("error", "code"), [*zip(ERRORS, [0, 2, 2, 2], strict=True)], ids=str)
def test_other_commands_report_lost_output(error, code, genlab, monkeypatch) -> None:
    from contextlib import redirect_stdout

    from helpers import cli_runner

    failing = FailingStream(error, after=1)
    monkeypatch.setattr(cli_runner, "redirect_stdout", lambda stream: redirect_stdout(failing))
    result = genlab("--version")
    assert result.code == code
    assert ("standard output" in result.err) == bool(code)


def run_shell(command: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a line of shell, in which $G is genlab."""
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"],
        cwd=cwd, env=os.environ | {"G": f"{sys.executable} -m genlab"} | environment,
        capture_output=True, encoding="utf-8", timeout=300, check=False,
    )  # fmt: skip  # one line of options


@pytest.mark.slow
@pytest.mark.parametrize(
    "redirection",
    ["2>&-", "2>/dev/full", ">&-", ">/dev/full", ">&- 2>&-", "<&-", "2> >(head -1)", "| true",
     "2>&1 | head -1"],
)  # fmt: skip
def test_training_ends_well_whatever_its_streams_are(redirection: str, tmp_path: Path) -> None:
    options = " ".join(TINY)
    done = run_shell(f"$G train {options} trainer.steps=5 out=run {redirection}", tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "checkpoints" / "step_000000005.pt").exists()


def test_closed_descriptors_are_not_given_to_files() -> None:
    code = (
        "import os\nfrom genlab.output_streams import use_safe_streams\n"
        "for n in range(3): os.close(n)\n"
        "with use_safe_streams(): print(open('/dev/null').fileno() > 2, file=open('got', 'w'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code + "\n"], cwd="/tmp", capture_output=True, check=False
    )
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("text", "encoding", "expected"),
    [
        ("0.5 ± 0.1 × 10², β_VAE ≥ −1 …", "ascii", "0.5 +- 0.1 x 10^2, beta_VAE >= -1 ..."),
        ("0.5 ± 0.1 × 10², µ → Δ", "latin-1", "0.5 ± 0.1 × 10², µ -> Delta"),
        ("━━──│├ 3 nats · ↓", "ascii", "==--|+ 3 nats . v"),
        ("modèle/字", "ascii", "mod\\xe8le/\\u5b57"),
        ("modèle ±", "utf-8", "modèle ±"),
        ("bad\udcff name", "utf-8", "bad\\udcff name"),
        ("bad\udcff ±", "ascii", "bad\\udcff +-"),
        ("x̂ ≈ ½, φ₅ ∞ ‖z‖", "ascii", "x ~ 1/2, phi_5 inf ||z||"),
    ],
)
def test_signs_degrade_readably(text: str, encoding: str, expected: str) -> None:
    raw = io.BytesIO()
    stream = SafeStream(io.TextIOWrapper(raw, encoding=encoding), "standard output")
    print(text, file=stream)  # type: ignore[call-overload]
    assert raw.getvalue().decode(encoding) == expected + "\n"
    assert not stream.error


def test_every_sign_in_genlab_has_an_ascii_form() -> None:
    """No sign of a message becomes a code such as \\u2265, which only letters of names do."""
    signs = {c for path in FILES for c in path.read_text(encoding="utf-8") if not c.isascii()}
    coded = sorted(c for c in signs if ascii_form(c).startswith("\\") and not c.isalpha())
    assert not coded, f"add to output_streams.REPLACEMENTS: {coded}"


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        "models",
        "datasets",
        "train --help",
        "info run=run",
        "evaluate run=run",
        "compare runs=[run]",
    ],
)
def test_commands_print_ascii_where_the_locale_is_c(command: str, train_run, tmp_path) -> None:
    import shutil

    shutil.copytree(train_run(*TINY), tmp_path / "run")
    locale = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = run_shell(f"$G {command}", tmp_path, PYTHONCOERCECLOCALE="0", **locale)
    assert done.returncode == 0, done.stderr
    assert (done.stdout + done.stderr).isascii() and "\\u" not in done.stdout


def test_streams_are_restored_and_nothing_is_kept_for_the_next_command(tmp_path: Path) -> None:
    before = sys.stdout, sys.stderr
    with use_safe_streams() as (out, _), use_safe_streams() as inner:
        assert inner[0] is out
        output_streams.keep_lost_output_in(tmp_path / "log")
    assert (sys.stdout, sys.stderr) == before and LOST_OUTPUT.path is None


# --- signals --------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="has no SIGHUP")
@pytest.mark.parametrize("is_ignored", [False, True])
def test_a_closed_terminal_stops_a_run_unless_nohup_ignores_it(is_ignored: bool) -> None:
    from genlab.signals import SignalCatcher

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if is_ignored else signal.SIG_DFL)
    try:
        with SignalCatcher() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            assert signals.first_signal_name == (None if is_ignored else "SIGHUP")
        assert signal.getsignal(signal.SIGHUP) in (signal.SIG_IGN, signal.SIG_DFL)
    finally:
        signal.signal(signal.SIGHUP, before)
