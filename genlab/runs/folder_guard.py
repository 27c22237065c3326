"""Files of a run folder that are deleted while a training writes to it are written again."""

from __future__ import annotations

from genlab.errors import UserError
from genlab.fileio import atomic_write
from genlab.runs.run_folder import RunFolder
from genlab.untrusted.files import read_bytes

KEPT_FILES = ("config.yaml", "run.json", "data.json")  # without the first two it is not a run


class FolderTakenError(UserError):
    """Another process trains in the folder, since its lock was deleted while this one trained."""

    exit_code = 1


class FolderGuard:
    """The small files of a run folder in memory, to write again what is deleted.

    Args:
        run: a complete run folder.
    """

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        paths = [run.path / name for name in KEPT_FILES]
        self.contents = {path.name: read_bytes(path) for path in paths if path.exists()}

    def restore(self) -> list[str]:
        """Write again what is gone, and return a message if anything was.

        Raises:
            FolderTakenError: another training runs, or has run, in this folder.
            OSError: it cannot be written again.
        """
        run = self.run
        is_folder_gone, is_lock_gone = not run.path.exists(), run.is_lock_gone()
        folders = [folder for folder in (run.checkpoints, run.samples) if not folder.is_dir()]
        missing = [name for name in self.contents if not (run.path / name).exists()]
        if not (is_lock_gone or folders or missing):
            return []
        for folder in (run.path, run.checkpoints, run.samples):
            folder.mkdir(parents=True, exist_ok=True)
        if is_lock_gone:
            self.lock_again()
        for name in missing:
            atomic_write(run.path / name, self.contents[name])
        names = ", ".join([*missing, *(folder.name + "/" for folder in folders)])
        what = run.path if is_folder_gone else f"{run.path}: {names or '.lock'}"
        return [f"{what} was deleted while training; it is written again"]

    def lock_again(self) -> None:
        """Lock the folder again.

        Raises:
            FolderTakenError: another training runs, or has run, in this folder.
        """
        path = self.run.path / "run.json"
        is_other_run = path.exists() and read_bytes(path) != self.contents.get(path.name)
        try:
            if not is_other_run:
                self.run.lock_again()
                return
        except UserError:
            pass
        raise FolderTakenError(
            f"{self.run.path}/.lock was deleted while training, and another process has trained "
            "there since"
        )

    def write_copy(self) -> RunFolder:
        """Write the files in memory as a run folder beside this one, and return it."""
        number = 2
        while (path := self.run.path.with_name(f"{self.run.path.name}-{number}")).exists():
            number += 1
        copy = RunFolder(path)
        for folder in (copy.checkpoints, copy.samples):
            folder.mkdir(parents=True)
        for name, content in self.contents.items():
            atomic_write(path / name, content)
        return copy
