"""Documents from local files: the standard library's own source, and text and JSON Lines files by glob.

Memory holds names and sizes, never contents. A big file is read in pieces, and where a piece truly begins is
found when it is read: behind the first newline at or after its nominal offset, as Hadoop's input splits do,
so that indexing a terabyte costs one stat per file.
"""

from __future__ import annotations

import glob
import json
import os
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from peer.data.seeded import shuffled
from swarm.errors import DataError

SHARDS = 64
MAX_SHARD_BYTES = 64 * 1024 * 1024
MAX_PIECE_BYTES = 64 * 1024
MIN_PIECE_BYTES = 1024
# Another peer's Python has other tests and packages; what everyone has is the library itself.
STDLIB_EXCLUDED = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"}


@dataclass(frozen=True)
class TextFile:
    """A file to read. name: the same on every peer; path: where it is here; size_bytes: when indexed."""

    name: str
    path: Path
    size_bytes: int


# (file, nominal offset of the piece, piece_bytes) -> (document id, text) pairs
ReadPiece = Callable[[TextFile, int, int], Iterator[tuple[str, str]]]


class FileSource:
    """Pieces of files, dealt to shards in an order by hash: shards are level, and none is empty.

    piece_bytes: 0 leaves files whole. There are 64 shards; fewer where there are fewer pieces, or so little
    text that a shard would hold under eight examples of ``sequence_length`` bytes (the rest of a shard is
    dropped); more where one would exceed 64 MiB, since resuming reads a shard from its start.
    """

    def __init__(self, files: Sequence[TextFile], piece_bytes: int, sequence_length: int, read: ReadPiece) -> None:
        self._files = [file for file in files if file.size_bytes > 0]
        self._piece_bytes = piece_bytes
        self._read = read
        counts = [-(-file.size_bytes // piece_bytes) if piece_bytes else 1 for file in self._files]
        # _first[f] is the number of file f's first piece; one more entry ends the last file.
        self._first = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        pieces = int(self._first[-1])
        total = sum(file.size_bytes for file in self._files)
        wanted = max(SHARDS, -(-total // MAX_SHARD_BYTES))
        self._shard_count = max(1, min(wanted, pieces, total // (8 * sequence_length)))
        self._dealt = shuffled(np.arange(pieces, dtype=np.int64), "shards")

    @property
    def shard_count(self) -> int:
        """At least 1."""
        return self._shard_count

    def documents(self, shard: int, order: str = "") -> Iterator[tuple[str, str]]:
        """The (document id, text) pairs of one shard; ``order`` shuffles its pieces."""
        numbers = self._dealt[shard :: self._shard_count]
        for number in shuffled(numbers, order) if order else np.sort(numbers):
            index = int(np.searchsorted(self._first, number, side="right")) - 1
            offset = int(number - self._first[index]) * self._piece_bytes
            yield from self._read(self._files[index], offset, self._piece_bytes)


def stdlib_source(sequence_length: int) -> FileSource:
    """The .py files of the running Python's standard library, each a document named by its relative path."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = []
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(set(folders) - STDLIB_EXCLUDED)
        for path in (Path(folder, name) for name in names if name.endswith(".py")):
            # A dangling link, or a file that vanishes: the library is large enough without it.
            if path.is_file():
                files.append(TextFile(path.relative_to(root).as_posix(), path, path.stat().st_size))
    if not files:
        raise DataError(f"data.source: this Python has no library source in {root}: use another, or source = 'text'")
    return FileSource(sorted(files, key=lambda file: file.name), 0, sequence_length, _read_whole)


def text_source(patterns: Sequence[str], field: str, sequence_length: int) -> FileSource:
    """The files that match the globs (``**``: any depth); relative patterns start at the current directory.

    A piece, and so a shard's unit, is about 64 KiB; less in a corpus under 16 MiB, which would otherwise have
    too few documents to hold some out. field: the text's key in JSON Lines (``.jsonl``), where each line is a
    document.
    """
    paths: dict[str, Path] = {}
    for pattern in patterns:
        found = _matches(pattern)
        if not found:
            raise DataError(f"data.paths: {pattern!r} matches no file (current directory: {Path.cwd()})")
        paths |= found
    indexed = [_index(name, path) for name, path in sorted(paths.items())]
    total = sum(file.size_bytes for file in indexed)
    if total == 0:
        raise DataError(f"data.paths: every file that matches {', '.join(map(repr, patterns))} is empty")
    piece_bytes = max(MIN_PIECE_BYTES, min(MAX_PIECE_BYTES, total // 256))

    def read(file: TextFile, offset: int, length: int) -> Iterator[tuple[str, str]]:
        try:
            if file.path.suffix.lower() == ".jsonl":
                yield from _read_json_lines(file, offset, length, field)
            else:
                yield from _read_text(file, offset, length)
        except OSError as error:
            raise DataError(f"data.paths: cannot read {file.path}: {error.strerror or error}") from error

    return FileSource(indexed, piece_bytes, sequence_length, read)


def _matches(pattern: str) -> dict[str, Path]:
    """The files of one pattern, by name. A home directory is ``~`` in the name: peers have homes of their own."""
    home = Path.home() if pattern.startswith("~/") else None
    expanded = str(home / pattern[2:]) if home else pattern
    # Path.glob refuses absolute patterns. A name that exists is a name, whatever characters are in it.
    found = [expanded] if Path(expanded).is_file() else glob.glob(expanded, recursive=True)  # noqa: PTH207
    files = [Path(os.path.normpath(path)) for path in found if Path(path).is_file()]
    return {f"~/{path.relative_to(home).as_posix()}" if home else path.as_posix(): path for path in files}


def _index(name: str, path: Path) -> TextFile:
    try:
        return TextFile(name, path, path.stat().st_size)
    except OSError as error:
        raise DataError(f"data.paths: cannot read {path}: {error.strerror or error}") from error


def _read_whole(file: TextFile, offset: int, piece_bytes: int) -> Iterator[tuple[str, str]]:
    try:
        text = file.path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError):
        return  # a file of the library that cannot be read is one document less, not an error
    if text:
        yield file.name, text


def _read_text(file: TextFile, offset: int, piece_bytes: int) -> Iterator[tuple[str, str]]:
    with file.path.open("rb") as stream:
        start = _text_boundary(stream, offset, file.size_bytes, piece_bytes)
        end = _text_boundary(stream, offset + piece_bytes, file.size_bytes, piece_bytes)
        stream.seek(start)
        text = stream.read(end - start).decode("utf-8", errors="replace")
    if start == 0:
        text = text.removeprefix("\ufeff")
    if text:
        yield f"{file.name}:{offset}", text


def _text_boundary(stream: BinaryIO, offset: int, size_bytes: int, window_bytes: int) -> int:
    """The true start of the piece that nominally starts at ``offset``: in [offset, offset + window_bytes)."""
    if offset == 0 or offset >= size_bytes:
        return min(offset, size_bytes)
    stream.seek(offset - 1)
    ahead = stream.read(min(window_bytes, size_bytes - offset + 1))
    newline = ahead.find(b"\n")
    if newline >= 0:
        return offset + newline
    # No newline within a whole piece: cut between two UTF-8 characters, which are at most 4 bytes long.
    return next((offset + n for n in range(4) if not b"\x80" <= ahead[1 + n : 2 + n] < b"\xc0"), offset)


def _read_json_lines(file: TextFile, offset: int, piece_bytes: int, field: str) -> Iterator[tuple[str, str]]:
    """The lines that begin in [offset, offset + piece_bytes)."""
    with file.path.open("rb") as stream:
        if offset > 0:
            stream.seek(offset - 1)
            # To behind the first newline at or after offset - 1; a longer line leaves nothing to begin here.
            stream.readline(1 + piece_bytes)
        while (position := stream.tell()) < min(offset + piece_bytes, file.size_bytes):
            line = stream.readline()
            if position == 0:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.strip() and (text := _json_text(file, position, line, field)):
                yield f"{file.name}:{position}", text


def _json_text(file: TextFile, position: int, line: bytes, field: str) -> str:
    """The text of one JSON line. Raises DataError naming file:line."""
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(f"{_place(file, position)}: not UTF-8 text") from error
    except (json.JSONDecodeError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply"
        raise DataError(f"{_place(file, position)}: not a line of JSON: {reason}") from error
    text = row.get(field) if isinstance(row, dict) else None
    if not isinstance(text, str):
        raise DataError(f"{_place(file, position)}: no text in the field {field!r} (data.field names it)")
    # JSON can spell half a surrogate pair, which no encoder accepts.
    return text.encode("utf-8", errors="replace").decode("utf-8")


def _place(file: TextFile, position: int) -> str:
    """file:line. Lines are counted here, when something is wrong, and not while all is well."""
    line, left = 1, position
    with file.path.open("rb") as stream:
        while left > 0 and (chunk := stream.read(min(left, 1 << 20))):
            line, left = line + chunk.count(b"\n"), left - len(chunk)
    return f"{file.path}:{line}"
