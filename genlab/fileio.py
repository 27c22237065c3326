"""Files written whole or not at all, and read in bounded time and memory, whoever made them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from genlab.errors import UserError

MOST_YAML = 2**18  # bytes of a config; they have a few thousand
MOST_JSON = 2**24


@contextmanager
def whole(path: Path) -> Iterator[IO[bytes]]:
    """Give a file to write, such that a reader of `path` sees the old content or the new, never a part, even if the power fails.

    Raises:
        OSError: it cannot be written (no space, no permission); names the path, where the old content stays.
    """
    part = path.with_name(path.name + ".part")
    try:
        with open(part, "wb") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        os.replace(part, path)
    except BaseException as error:
        with suppress(OSError):  # a part would go on filling a full disk
            part.unlink()
        if failed := cause(error):
            raise OSError(failed.errno, failed.strerror, str(path)) from error
        raise
    sync_folder(path.parent)


def cause(error: BaseException | None) -> OSError | None:
    """Return what the system refused, also where a library (torch.save) reports the failed write as an error of its own."""
    while error is not None:
        if isinstance(error, OSError) and error.errno:
            return error
        error = error.__cause__ or error.__context__
    return None


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an error of writing in the block name the file, which a failed write itself does not.

    Raises:
        OSError: what the block raised, with the path.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never a part, even if the power fails."""
    with whole(path) as f:
        f.write(data)


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power failure."""
    handle = os.open(folder, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


def lockable(path: Path) -> IO[str]:
    """Open a file, made where it is missing, whose lock is all that matters: what it holds stays, and no link is followed."""
    return os.fdopen(
        os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666), "r+"
    )


# --- reading ----------------------------------------------------------------------------------------------------------


def refuse_links(folder: Path, what: str, but: re.Pattern[str] | None = None) -> None:
    """Refuse a folder with a link out of it, through which a stranger's would have other files read and written.

    Args:
        what: the folder is, such as "run".
        but: paths in it, whole, of links that nothing is read or written through.

    Raises:
        UserError: names the link.
    """
    inside = folder.resolve()
    for here, folders, files in os.walk(folder):
        for path in (Path(here, name) for name in (*folders, *files)):
            out = path.is_symlink() and not path.resolve().is_relative_to(inside)
            if out and not (but and but.fullmatch(str(path.relative_to(folder)))):
                raise UserError(
                    f"{path} is a link out of the {what}, to {os.readlink(path)}; put there what it stands for"
                )


def read_text(path: Path, most: int) -> str:
    """Return a text file of at most `most` bytes.

    Raises:
        UserError: it is longer, or no text.
    """
    with open(path, "rb") as f:
        data = f.read(most + 1)
    if len(data) > most:
        raise UserError(f"{path} is unreadable: it has more than {most:,} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is unreadable: it is no text in UTF-8 ({error.reason} at byte {error.start})"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        UserError: it holds none.
    """
    try:
        found = json.loads(read_text(path, MOST_JSON))
    except (ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is unreadable: {error}") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} is unreadable: it holds no JSON object")
    return found


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file as plain values: no tag is obeyed, and nothing in it refers to anything else.

    What looks like an interpolation of OmegaConf stays the text that it is.

    Raises:
        UserError: it holds none, or has aliases, by which a few lines stand for any number of values.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.events.AliasEvent):
                raise UserError(
                    f"{path} is unreadable: it has a YAML alias, which no config that genlab wrote has"
                )
            return super().compose_node(parent, index)

    try:
        found = yaml.load(read_text(path, MOST_YAML), Loader)
    except yaml.YAMLError as error:
        raise UserError(f"{path} is unreadable: {' '.join(str(error).split())}") from error
    except (
        RecursionError,
        ValueError,
    ) as error:  # a ValueError: a date such as 2020-99-99, a number of 5,000 digits
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is unreadable: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} is unreadable: it holds no mapping of options")
    return found
