"""The file of a run's timeline: `trace.json.gz`, which grows by a part with each step.

It is one gzip stream of one JSON array at any time, so that what a killed run has left opens like any other: each part
takes the place of the stream's end and brings a new one.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from orchestrator.timeline.events import TraceEvent
from roles.durable import replacing

TRACE_FILE = "trace.json.gz"
TRACE_BLOCK = 1 << 10
"""Bytes that are unpacked together: of a damaged file as many are lost before the damage."""
_HEAD = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"
"""Of a gzip stream (RFC 1952) without name and time."""
_CLOSING = b'{"ph":"M","name":"end","pid":0,"tid":0,"args":{}}]\n'
"""The end of the array."""


class TraceFile:
    """Writes the file; each part is there completely when `append` returns."""

    def __init__(self, path: Path, kept: Iterable[Sequence[TraceEvent]] = ()) -> None:
        """Begin the file anew, with the parts `kept`."""
        self._path, self._sum, self._size, self._end = path, zlib.crc32(b""), 0, len(_HEAD)
        with replacing(path) as partial:
            partial.write_bytes(_HEAD)
            self._file = partial.open("r+b", buffering=0)
            self._write(b"[\n")
            for part in kept:
                self.append(part)

    def append(self, events: Sequence[TraceEvent]) -> None:
        """Add a part."""
        self._write(b"".join(json.dumps(event, separators=(",", ":")).encode() + b",\n" for event in events))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, text: bytes) -> None:
        packer = zlib.compressobj(6, zlib.DEFLATED, -zlib.MAX_WBITS)
        packed = packer.compress(text) + packer.flush(zlib.Z_FULL_FLUSH)
        total, size = zlib.crc32(text, self._sum), self._size + len(text)
        try:
            self._put(packed + _ending(total, size))
        except OSError:
            with suppress(OSError):  # the parts before this one open again
                self._put(_ending(self._sum, self._size))
            raise
        self._sum, self._size, self._end = total, size, self._end + len(packed)

    def _put(self, packed: bytes) -> None:
        """Let these bytes be what follows the parts that are there."""
        self._file.seek(self._end)
        left = memoryview(packed)
        while left:  # a system may write less than it is given
            left = left[self._file.write(left) :]
        self._file.truncate()


def _ending(total: int, size: int) -> bytes:
    """The end of the array and of the stream, for a text before it with that CRC and that many bytes."""
    packer = zlib.compressobj(6, zlib.DEFLATED, -zlib.MAX_WBITS)
    last = packer.compress(_CLOSING) + packer.flush()
    check = zlib.crc32(_CLOSING, total).to_bytes(4, "little")
    return last + check + ((size + len(_CLOSING)) & 0xFFFFFFFF).to_bytes(4, "little")


def read_trace(path: Path) -> Iterator[list[TraceEvent]]:
    """The parts of a file; the last one of a killed run may lack events. ValueError for a file that is none."""
    part: list[TraceEvent] = []
    for line in _lines(path):
        if line in (b"[", _CLOSING.rstrip()):
            continue
        try:
            event = json.loads(line.removesuffix(b","))
            new = event["ph"] == "M" and event["name"] == "part"
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path} is no timeline of a run ({error}); remove it") from error
        if new and part:
            yield part
            part = []
        part.append(event)
    if part:
        yield part


def _lines(path: Path) -> Iterator[bytes]:
    """The whole lines of the text, as far as it can be unpacked."""
    unpacker, rest, begun = zlib.decompressobj(16 + zlib.MAX_WBITS), b"", False
    with path.open("rb") as file:
        while block := file.read(TRACE_BLOCK):
            try:
                text = unpacker.decompress(block)
            except zlib.error as error:
                if not begun:
                    raise ValueError(f"{path} is no gzip file ({error}); remove it") from error
                break
            begun = begun or bool(text)
            *whole, rest = (rest + text).split(b"\n")
            yield from whole


def parts_until(path: Path, step: int) -> Iterator[list[TraceEvent]]:
    """The parts of the steps up to `step` of a file, if there is one."""
    if not path.exists():
        return
    for part in read_trace(path):
        if part[0]["args"]["step"] > step:
            return
        yield part
