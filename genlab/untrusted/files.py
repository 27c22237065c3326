"""Reading of files and folders that may come from outside, in bounded time and memory.

A file in a folder from elsewhere may be a named pipe, on which a reader waits for ever, a device, a
link, or a sparse file of terabytes. So every such file is opened by `open_regular_file`.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import IO, Any

from genlab.errors import UserError
from genlab.system import physical_memory_bytes

MAX_YAML_BYTES = 2**18  # a config has a few thousand
MAX_JSON_BYTES = 2**24
MAX_LOG_BYTES = 2**30  # of stats.jsonl, which has some hundred bytes per logged step
MAX_PICTURE_BYTES = 2**27
MAX_TEXT_BYTES = 2**30
EXPONENT_WITHOUT_POINT = re.compile(r"[-+]?\d+[eE][-+]?\d+")  # 1e-4
KINDS_OF_FILE = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
READ_FLAGS = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
# Open without waiting for the other end of a pipe, and without making a terminal one's own.
NO_WAIT_FLAGS = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)


# --- opening --------------------------------------------------------------------------------------


def open_regular_file(path: str | Path, max_bytes: int | None = None) -> BufferedReader:
    """Open a file to read its bytes; it returns at once, whatever the path is.

    The check is made of the opened file, so nothing can be put in its place afterwards.

    Args:
        max_bytes: its largest size; None for any.

    Raises:
        UserError: it is not a regular file, or it is larger.
        OSError: it does not exist, or cannot be opened.
    """
    refuse_special_file(path, os.stat(path))  # before it is opened: opening a device may act on it
    handle = os.open(path, READ_FLAGS | NO_WAIT_FLAGS)
    try:
        status = os.fstat(handle)
        refuse_special_file(path, status)
        refuse_large_file(path, status.st_size, max_bytes)
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def open_lock_file(path: Path) -> IO[str]:
    """Open a file to be locked, and create it if it is missing.

    Its content is kept, and a symbolic link is not followed.

    Raises:
        UserError: it is not a regular file.
    """
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)
    if os.path.lexists(path):
        refuse_special_file(path, os.lstat(path))
    handle = os.open(path, flags | NO_WAIT_FLAGS, 0o666)
    try:
        refuse_special_file(path, os.fstat(handle))
        return os.fdopen(handle, "r+", encoding="utf-8")
    except BaseException:
        os.close(handle)
        raise


def refuse_special_file(path: str | Path, status: os.stat_result) -> None:
    """Refuse what is not a regular file, given its status.

    Raises:
        UserError: says what it is.
    """
    for is_kind, name in KINDS_OF_FILE:
        if is_kind(status.st_mode):
            raise UserError(f"{path} is {name}, and a file is needed there; remove it")


def refuse_large_file(path: str | Path, size: int, max_bytes: int | None) -> None:
    """Refuse a file that is larger than what is read at its place.

    Raises:
        UserError: names both sizes.
    """
    if max_bytes is not None and size > max_bytes:
        raise UserError(
            f"{path} is unreadable: it has more than {format_bytes(max_bytes)} "
            f"({format_bytes(size)}), unlike any that genlab reads"
        )


def format_bytes(size: int) -> str:
    """Return a size with the unit that suits it: 262,144 bytes, 60.0 GB."""
    return f"{size:,} bytes" if size < 2**30 else f"{size / 2**30:,.1f} GB"


def half_memory_bytes() -> int:
    """Return half of the machine's memory in bytes, the bound of a file that is read whole."""
    return physical_memory_bytes() // 2


# --- reading --------------------------------------------------------------------------------------


def read_bytes(path: str | Path, max_bytes: int | None = None) -> bytes:
    """Return a file's bytes.

    Args:
        max_bytes: its largest size; None for half of the machine's memory.

    Raises:
        UserError: it is not a regular file, or it is larger.
    """
    limit = half_memory_bytes() if max_bytes is None else max_bytes
    with open_regular_file(path, limit) as file:
        data = file.read(limit + 1)
    refuse_large_file(path, len(data), limit)  # it has grown
    return data


def read_text(path: str | Path, max_bytes: int = MAX_TEXT_BYTES) -> str:
    """Return a text file in UTF-8.

    Raises:
        UserError: it is not a regular file, it is larger, or not UTF-8.
    """
    try:
        return read_bytes(path, max_bytes).decode()
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
        content = json.loads(read_text(path, MAX_JSON_BYTES))
    except (ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is unreadable: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is unreadable: it does not contain a JSON object")
    return content


def read_json_lines(path: Path, required: dict[str, type]) -> Iterator[tuple[bytes, Any]]:
    """Yield the complete lines of a file of JSON objects, as bytes and parsed.

    A last line without its end is being written, or was cut short by a kill or a full disk.

    Args:
        required: the keys that each object must have, with their types.

    Raises:
        UserError: a line is not such an object.
    """
    for number, line in enumerate(read_bytes(path, MAX_LOG_BYTES).splitlines(keepends=True), 1):
        if not line.endswith(b"\n"):
            return
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict) or not has_types(record, required):
            raise UserError(
                f"{path}, line {number} is damaged: it is not a JSON object with a "
                f"{' and a '.join(required)}"
            )
        yield line, record


def has_types(record: dict[str, Any], required: dict[str, type]) -> bool:
    """Whether an object has values of these types; a boolean is not a number."""
    return all(
        isinstance(record.get(key), kind) and not isinstance(record[key], bool)
        for key, kind in required.items()
    )


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

    # as OmegaConf reads it: to PyYAML, 1e-4 is a text
    float_tag = "tag:yaml.org,2002:float"
    Loader.add_implicit_resolver(float_tag, EXPONENT_WITHOUT_POINT, list("-+0123456789"))
    try:
        content = yaml.load(read_text(path, MAX_YAML_BYTES), Loader)
    except UserError:
        raise
    # ValueError: a date such as 2020-99-99, a number of 5,000 digits; TypeError, AttributeError and
    # LookupError: malformed values of tags such as !!omap, !!binary and !!timestamp
    except (
        yaml.YAMLError,
        RecursionError,
        ValueError,
        TypeError,
        AttributeError,
        LookupError,
    ) as e:
        reason = " ".join(str(e).split()) or type(e).__name__
        raise UserError(f"{path} is unreadable: {reason}") from e
    if not isinstance(content, dict):
        raise UserError(f"{path} is unreadable: it does not contain a mapping of options")
    return content


# --- folders --------------------------------------------------------------------------------------


def refuse_links_and_special_files(
    folder: Path, kind: str, allowed: re.Pattern[str] | None = None
) -> None:
    """Refuse a folder with links that point out of it, pipes, sockets or devices.

    An untrusted folder could use the former to have other files read or overwritten, and the latter
    to make every program wait that opens all files of a folder.

    Args:
        kind: what the folder is, such as "run", for the message.
        allowed: full relative paths of links that nothing is read or written through.

    Raises:
        UserError: names the link or the file.
    """
    inside = os.path.realpath(folder)
    folders = [str(folder)]
    while folders:
        parent = folders.pop()
        try:
            entries = list(os.scandir(parent))
        except (NotADirectoryError, FileNotFoundError, PermissionError):
            continue
        for entry in entries:
            if entry.is_symlink():
                name = os.path.relpath(entry.path, folder)
                if not (allowed and allowed.fullmatch(name)):
                    refuse_link_out_of_folder(entry.path, inside, kind)
            elif entry.is_dir(follow_symlinks=False):
                folders.append(entry.path)
            elif not entry.is_file(follow_symlinks=False):
                refuse_special_file(entry.path, entry.stat(follow_symlinks=False))


def refuse_link_out_of_folder(path: str, inside: str, kind: str) -> None:
    """Refuse a link that points out of a folder, or nowhere.

    Args:
        inside: the real path of the folder.
        kind: what the folder is, for the message.

    Raises:
        UserError: names the link and its target.
    """
    if is_link_loop(path):
        raise UserError(f"{path} is a link to itself; remove it")
    if not is_inside_folder(path, inside):
        raise UserError(
            f"{path} is a link out of the {kind}, to {os.readlink(path)}; "
            "replace it with the file or folder that it points to"
        )
    if os.path.exists(path):
        refuse_pipe_or_device(path)


def refuse_pipe_or_device(path: str) -> None:
    """Refuse what is neither a regular file nor a folder.

    Raises:
        UserError: says what it is.
    """
    status = os.stat(path)
    if not stat.S_ISDIR(status.st_mode):
        refuse_special_file(path, status)


def real_path(path: str | Path) -> Path:
    """Return an absolute path with all links followed, as far as they do not form a loop."""
    return Path(os.path.realpath(path))


def is_inside_folder(path: str | Path, folder: str | Path) -> bool:
    """Whether a path is a folder or below it, with all links followed; links may be loops."""
    target, inside = os.path.realpath(path), os.path.realpath(folder)
    return target == inside or target.startswith(inside.rstrip(os.sep) + os.sep)


def is_link_loop(path: str | Path) -> bool:
    """Whether following a link never ends."""
    try:
        os.stat(path)
    except OSError as error:
        return error.errno == errno.ELOOP
    return False
