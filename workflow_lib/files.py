"""Atomic writes and checked reads: a file appears complete or not at all."""

from __future__ import annotations

import codecs
import errno
import hashlib
import json
import os
import shlex
import stat
import sys
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from io import FileIO
from pathlib import Path
from types import UnionType
from typing import IO, Any, TypeVar, cast, get_origin, get_type_hints

from workflow_lib.errors import StateError
from workflow_lib.processes import writer_mark

T = TypeVar("T")
CHECKSUM = "checksum"  # key of a JSON file: the digest of its other values
SMALL_BYTES = 1 << 20  # smaller files are compared by content, larger ones by size and times
# errors of reading a file that another process or version wrote: it is missing, damaged, or has other contents
UNREADABLE = (OSError, ValueError, TypeError, LookupError, AttributeError)
REMAKE = "Delete the file and run the pipeline again to regenerate it"


def blake2b(content: bytes | memoryview = b"", *, size: int = 16, kind: str = "") -> hashlib.blake2b:
    """Return a hash object of `size` bytes with this content; each `kind` (up to 16 bytes) gives other hashes."""
    return hashlib.blake2b(content, digest_size=size, person=kind.encode())


def file_digest(path: Path, size: int = 16) -> str:
    """Return the BLAKE2b digest of a file's bytes: two hex digits for each of `size` bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: blake2b(size=size)).hexdigest()


def file_state(path: Path) -> list[Any]:
    """Return a value that differs when the file, or a file in the folder, may have changed.

    Small files are compared by content, larger ones by size and times. Hidden files in a folder do not count.
    """
    if path.is_dir():
        inside = [Path(at, name) for at, _, names in os.walk(path) for name in names if not name.startswith(".")]
        return [[str(file), *_size_and_times(file)] for file in sorted(inside)]
    if not path.exists() or path.stat().st_size > SMALL_BYTES:
        return _size_and_times(path)
    return [file_digest(path)]


def in_utf8(path: Path) -> str:
    """Return how to convert a file of text, to end a message with; its encoding is guessed from its first bytes."""
    head = b""
    if path.is_file():  # a pipe can be read only once
        with path.open("rb") as file:
            head = file.read(2)
    is_utf_16 = head in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    encoding, used = ("UTF-16", "in Windows") if is_utf_16 else ("CP1252", "in Western Europe")
    source, target = (shlex.quote(str(name)) for name in (path, path.with_stem(f"{path.stem}-utf8")))
    command = f"iconv -f {encoding} -t UTF-8 {source} > {target}"
    return f"replace it by a copy in UTF-8: `{command}` if it is in {encoding}, as is common {used}"


def _size_and_times(path: Path) -> list[int]:
    try:
        state = path.stat()
    except FileNotFoundError:  # or a dangling link
        return []
    # `cp -p` and others set the first time; no program can set the second one, that of the last change of any kind
    return [state.st_size, state.st_mtime_ns, state.st_ctime_ns]


def fsync_dir(path: Path) -> None:
    """Make the entries of the directory survive a power loss."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_dirs(path: Path) -> None:
    """Create the folder and its parents, so that they survive a power loss."""
    if not path.is_dir():
        make_dirs(path.parent)
        path.mkdir(exist_ok=True)
        fsync_dir(path.parent)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Set the path as the file name of an OSError in the block, since errors of write(2) have none."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise


def write_atomic(path: Path, content: bytes | str | Sequence[bytes | memoryview], *, durable: bool = True) -> None:
    """Write the content, or its pieces, to the file; a reader sees the old bytes or the new ones, never a mixture.

    Without `durable` a power loss, and nothing else, may leave a partial file: for files that can be regenerated.
    """
    text = content.encode() if isinstance(content, str) else content
    pieces = [text] if isinstance(text, bytes) else text
    make_dirs(path.parent)
    temporary = temporary_name(path)
    with ExitStack() as undo:
        undo.callback(temporary.unlink, missing_ok=True)
        with naming(path), temporary.open("xb") as file:
            file.writelines(pieces)
            file.flush()
            if durable:
                sys.audit("everstep", "fsync", str(temporary))
                os.fsync(file.fileno())
        temporary.replace(path)
        undo.pop_all()
    if durable:
        fsync_dir(path.parent)


@contextmanager
def open_atomic(path: Path) -> Iterator[IO[bytes]]:
    """Yield a file that replaces `path` when the block ends; if it raises or the process is killed, nothing is left.

    For files that are too large to be held in memory. Where the file system has no files without a name (O_TMPFILE),
    a killed process leaves a hidden temporary file.
    """
    make_dirs(path.parent)
    temporary = temporary_name(path)
    with ExitStack() as undo:
        undo.callback(temporary.unlink, missing_ok=True)
        with naming(path), _open_unnamed(path.parent) or temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if not temporary.exists():
                # os.link follows the link in /proc only if it is given a directory, which an absolute path ignores
                os.link(f"/proc/self/fd/{file.fileno()}", temporary, src_dir_fd=file.fileno(), follow_symlinks=True)
        temporary.replace(path)
        undo.pop_all()
    fsync_dir(path.parent)


def _open_unnamed(folder: Path) -> IO[bytes] | None:
    """Return a new file without a name in the folder; None where there are no such files."""
    if not hasattr(os, "O_TMPFILE") or not Path("/proc/self/fd").is_dir():
        return None
    try:
        return os.fdopen(os.open(folder, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o666), "wb")
    except OSError:  # the file system has none, or the folder cannot be written: opening the named file then says so
        return None


def open_regular(path: Path) -> FileIO:
    """Open the file for reading, unbuffered. Raises OSError for a link, a device or a pipe."""
    with naming(path):
        # O_NONBLOCK: opening a pipe without a writer must not wait
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    file = FileIO(descriptor)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return file


def temporary_name(path: Path) -> Path:
    """Return a new name in the same folder, for a file that is renamed to the path when it is complete.

    The name contains the mark of this process: the file is not cleaned up while this process lives.
    """
    return path.parent / f".{path.name}.{writer_mark()}{os.urandom(6).hex()}.tmp"


def write_json(path: Path, value: Any) -> None:
    """Write the value as JSON with sorted keys, atomically. Raises ValueError for NaN."""
    write_atomic(path, json_text(value))


def append_line(path: Path, line: bytes) -> None:
    """Append the line, which ends with a line feed, in a single write, so that lines of several processes never mix.

    If another process replaces the file meanwhile, the line is in the new one; it may be there twice.
    """
    is_replaced = True
    while is_replaced:
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            size = os.fstat(descriptor).st_size
            is_partial = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
            # after a partial line, begin a new one; if another process was just writing, this leaves an empty line
            os.write(descriptor, b"\n" * is_partial + line)
            is_replaced = os.fstat(descriptor).st_nlink == 0
        finally:
            os.close(descriptor)


def write_signed(path: Path, value: Mapping[str, Any]) -> None:
    """Write the value as JSON with a checksum, which `read_json` compares and removes."""
    write_json(path, {**value, CHECKSUM: _checksum(json.loads(json_text(value)))})


def _checksum(value: Mapping[str, Any]) -> str:
    return blake2b(compact_json(value)).hexdigest()


def json_text(value: Any) -> str:
    """Return the value as indented JSON with sorted keys. Raises ValueError for NaN."""
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def compact_json(value: Any) -> bytes:
    """Return the value as JSON with sorted keys and no spaces, so that equal values give equal bytes. Not for NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def decoded(kind: type[T], content: Any) -> T:
    """Return the dataclass of a JSON object, without keys that it does not know. Raises TypeError for a wrong type."""
    values = {}
    for name, allowed in _allowed(cast(Hashable, kind)).items():
        if name in content:
            value = content[name]
            is_whole = isinstance(value, int) and isinstance(float(value), allowed)  # JSON may store 1.0 as 1
            if not (is_whole or isinstance(value, allowed)):
                raise TypeError(f"{name} is {value!r}")
            values[name] = value
    return kind(**values)


@cache
def _allowed(kind: Any) -> dict[str, Any]:
    """Return the type of each field, as isinstance takes it: of `tuple[int, ...]` its origin."""
    hints = get_type_hints(kind)
    return {name: hint if isinstance(hint, UnionType) else get_origin(hint) or hint for name, hint in hints.items()}


def names_in(folder: str | Path) -> list[str]:
    """Return the names in the folder, sorted; none if it does not exist or must not be listed."""
    try:
        return sorted(os.listdir(folder))  # noqa: PTH208 (names, not paths: many folders are listed)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []


def read_json(path: Path, *names: str) -> Any:
    """Return the value of a JSON file. Raises StateError if the file is damaged, or has no key of one of the names."""
    try:
        value = json.loads(path.read_bytes().decode())
    except (ValueError, RecursionError) as error:
        raise StateError(f"{path}: not a JSON file ({error}). {REMAKE}") from error
    if isinstance(value, dict) and CHECKSUM in value and value.pop(CHECKSUM) != _checksum(value):
        raise StateError(f"{path}: damaged: its checksum is not that of its content. {REMAKE}")
    missing = [name for name in names if not isinstance(value, dict) or name not in value]
    if missing:
        raise StateError(f"{path}: has no {', '.join(missing)}. {REMAKE}")
    return value
