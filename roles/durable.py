"""Files that are on the disk once they are written, and hashes of their content. Paths in, hexadecimal hashes out."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import xxhash

READ_BYTES = 4 * 2**20
"""Bytes that are read at a time."""


class HashedFile:
    """A file to write to, which hashes what it is given."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = xxhash.xxh3_128()

    def write(self, data: Any) -> int:
        """Write bytes; returns their number."""
        self._hash.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        """Hand everything to the system."""
        self._file.flush()

    def hexdigest(self) -> str:
        """The hash (XXH3, 128 bits) of everything that was written."""
        return self._hash.hexdigest()


def write_durably(path: Path, write: Callable[[HashedFile], object]) -> str:
    """Have `write` fill a new file, and wait until it is on the disk; its hash, of what was meant to be written."""
    with path.open("wb") as raw:
        file = HashedFile(raw)
        write(file)
        sync_file(raw)
    return file.hexdigest()


def replace_durably(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, in place of one that may be there; it is on the disk on return. Processes may
    do so at the same time."""
    with replacing(path) as partial:
        write_durably(partial, lambda file: file.write(content))
    sync_folder(path.parent)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Context with the path of a new file, which takes the place of `path` at the end; after an error it is removed.
    Processes may do so at the same time, also on several hosts."""
    own = f"{os.getpid()}-{secrets.token_hex(4)}"  # hosts or containers that share a folder may have the same numbers
    partial = path.with_name(f"{path.name}.{own}.partial")
    try:
        yield partial
        partial.replace(path)
    except BaseException:
        with suppress(OSError):  # the first error is the one to raise
            partial.unlink(missing_ok=True)
        raise


def seal(path: Path) -> str:
    """Wait until a file that others have written is on the disk; its hash."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return hash_of(path)


def hash_of(path: Path) -> str:
    """The hash (XXH3, 128 bits) of a file's content."""
    found, block = xxhash.xxh3_128(), memoryview(bytearray(READ_BYTES))
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(block):
            found.update(block[:size])
    return found.hexdigest()


def sync_file(file: BinaryIO) -> None:
    """Wait until what was written to an open file is on the disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
