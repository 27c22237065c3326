"""Atomic writing of files, and reading of untrusted files with limits."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from genlab.errors import UserError

MAX_YAML_BYTES = 2**18  # a config has a few thousand
MAX_JSON_BYTES = 2**24


# --- writing --------------------------------------------------------------------------------------


@contextmanager
def atomic_open(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for atomic writing.

    Readers of `path` see the old or the new content, never a partial write, even after a power
    failure.

    Raises:
        OSError: writing failed (no space, no permission); names the path, which keeps its old
            content.
    """
    part = path.with_name(path.name + ".part")
    try:
        with open(part, "wb") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        os.replace(part, path)
    except BaseException as error:
        with suppress(OSError):  # the partial file would keep filling a full disk
            part.unlink()
        if os_error := find_os_error_in_causes(error):
            raise OSError(os_error.errno, os_error.strerror, str(path)) from error
        raise
    fsync_folder(path.parent)


def atomic_write(path: Path, data: bytes) -> None:
    """Write a file atomically; see `atomic_open`."""
    with atomic_open(path) as f:
        f.write(data)


def find_os_error_in_causes(error: BaseException | None) -> OSError | None:
    """Return the system's error in a chain of causes, or None.

    A library such as torch.save reports a failed write as its own error type.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno:
            return error
        error = error.__cause__ or error.__context__
    return None


@contextmanager
def add_path_to_os_errors(path: Path) -> Iterator[None]:
    """Context that adds the path to an OSError that names no file, such as a failed write.

    Raises:
        OSError: what the block raised, with the path.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def fsync_folder(folder: Path) -> None:
    """Flush a folder to disk, so that a rename in it survives a power failure."""
    handle = os.open(folder, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


def open_lock_file(path: Path) -> IO[str]:
    """Open a file to be locked, and create it if it is missing.

    Its content is kept, and a symbolic link is not followed.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.fdopen(os.open(path, flags, 0o666), "r+")


# --- reading --------------------------------------------------------------------------------------


def refuse_links_out_of_folder(
    folder: Path, kind: str, allowed: re.Pattern[str] | None = None
) -> None:
    """Refuse a folder with symbolic links that point out of it.

    An untrusted folder could use them to have other files read or overwritten.

    Args:
        kind: what the folder is, such as "run", for the message.
        allowed: full relative paths of links that nothing is read or written through.

    Raises:
        UserError: names the link.
    """
    inside = folder.resolve()
    for parent, folders, files in os.walk(folder):
        for path in (Path(parent, name) for name in (*folders, *files)):
            if not path.is_symlink() or path.resolve().is_relative_to(inside):
                continue
            if allowed and allowed.fullmatch(str(path.relative_to(folder))):
                continue
            raise UserError(
                f"{path} is a link out of the {kind}, to {os.readlink(path)}; "
                "replace it with the file or folder that it points to"
            )


def read_text_with_limit(path: Path, max_bytes: int) -> str:
    """Return a text file of up to `max_bytes` bytes.

    Raises:
        UserError: it is longer, or not UTF-8.
    """
    with open(path, "rb") as f:
        data = f.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise UserError(f"{path} is unreadable: it has more than {max_bytes:,} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is unreadable: it is not UTF-8 text ({error.reason} at byte {error.start})"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        UserError: it does not contain one.
    """
    try:
        content = json.loads(read_text_with_limit(path, MAX_JSON_BYTES))
    except (ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is unreadable: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is unreadable: it does not contain a JSON object")
    return content


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file as plain values.

    Tags are not obeyed, and what looks like an OmegaConf interpolation stays text.

    Raises:
        UserError: it does not contain a mapping, or has aliases, which expand a few lines to any
            number of values.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.events.AliasEvent):
                raise UserError(
                    f"{path} is unreadable: it has a YAML alias, which genlab never writes"
                )
            return super().compose_node(parent, index)

    try:
        content = yaml.load(read_text_with_limit(path, MAX_YAML_BYTES), Loader)
    except UserError:
        raise
    # ValueError: a date such as 2020-99-99, a number of 5,000 digits
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise UserError(f"{path} is unreadable: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is unreadable: it does not contain a mapping of options")
    return content
