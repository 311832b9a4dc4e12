"""The directories of a TIFF file as bytes: where they, and what they point to, lie.

They are read before a library reads them, as libraries pass by what is cut off or broken. It knows
nothing of voxels.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from wkdask.errors import FormatError, MissingError, storage_error

__all__ = ["Directory", "directories", "orphan_marks"]

# Bytes of a value by its type.
_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4,
          16: 8, 17: 8, 18: 8}  # fmt: skip
_POINTERS = {4: "I", 13: "I", 16: "Q", 18: "Q"}

_WIDTH, _SUB_DIRECTORIES = 256, 330

_MAX_TAGS = 4096


@dataclass(frozen=True, slots=True)
class Directory:
    """What describes a page."""

    offset: int
    """Where it begins."""
    tags: tuple[int, ...]
    """The numbers of its tags, in the order of the file."""
    extents: tuple[tuple[int, int], ...]
    """Bytes that it takes, and those of its values elsewhere: start and end."""
    below: tuple[int, ...]
    """Where directories of smaller images of the page begin."""


@dataclass(frozen=True, slots=True)
class _Kind:
    """How numbers are written in a file."""

    order: str
    is_big: bool

    @property
    def word(self) -> str:
        return "Q" if self.is_big else "I"

    @property
    def count(self) -> str:
        return "Q" if self.is_big else "H"


def directories(path: str) -> tuple[list[Directory], list[Directory]]:
    """Return the directories of a file, and those of smaller images below them.

    Raises
    ------
    FormatError
        If one of them, or a value of one, does not lie in the file.
    """
    try:
        state = os.stat(path)
        if not stat.S_ISREG(state.st_mode):
            raise FormatError(f"{path} is no TIFF file, but no file at all: name a regular file.")
        with open(path, "rb") as file:
            found = _Walk(path, file, state.st_size)
            main = list(found.chain(found.first))
            return main, [each for one in main for at in one.below for each in found.chain(at)]
    except FileNotFoundError:
        raise MissingError(f"{path} is gone.") from None
    except OSError as error:
        raise storage_error(error, path, "reading the directories of a TIFF file") from None


def orphan_marks(path: str) -> tuple[bytes, ...]:
    """Return the bytes with which a directory tells the width of its image."""
    with open(path, "rb") as file:
        kind = _kind(file.read(4))
    if kind is None:
        return ()
    return tuple(struct.pack(f"{kind.order}HH{kind.word}", _WIDTH, of, 1) for of in (3, 4))


def _kind(start: bytes) -> _Kind | None:
    order = {b"II": "<", b"MM": ">"}.get(start[:2])
    if order is None or len(start) < 4:
        return None
    (version,) = struct.unpack(f"{order}H", start[2:4])
    return _Kind(order, version == 43) if version in (42, 43) else None


class _Walk:
    """A file, of which every byte that is asked for must be there."""

    def __init__(self, path: str, file: BinaryIO, size: int) -> None:
        self._path, self._file, self._size = path, file, size
        self._seen: set[int] = set()
        kind = _kind(file.read(4))
        if kind is None:
            raise self._broken("it begins with other bytes")
        self._kind = kind
        if kind.is_big and self._numbers(4, "HH") != (8, 0):
            raise self._broken("its offsets have no 8 bytes")
        (self.first,) = self._numbers(8 if kind.is_big else 4, kind.word)
        if not self.first:
            raise self._broken("it has no pages")

    def _broken(self, what: str) -> FormatError:
        return FormatError(f"{self._path} is no TIFF file, or not all of one: {what}.")

    def _bytes(self, offset: int, count: int) -> bytes:
        if offset + count > self._size:
            raise self._broken(f"it ends at byte {self._size}, but needs {offset + count}")
        self._file.seek(offset)
        return self._file.read(count)

    def _numbers(self, offset: int, kinds: str) -> tuple[int, ...]:
        layout = f"{self._kind.order}{kinds}"
        return struct.unpack(layout, self._bytes(offset, struct.calcsize(layout)))

    def chain(self, offset: int) -> Iterator[Directory]:
        """Yield a directory and those that follow it."""
        while offset:
            if offset < 8 or offset in self._seen:
                raise self._broken(f"a page leads to byte {offset}, where no other page can be")
            self._seen.add(offset)
            directory, offset = self._directory(offset)
            yield directory

    def _directory(self, offset: int) -> tuple[Directory, int]:
        """Return what lies at a place, and where the next one is."""
        kind = self._kind
        (count,) = self._numbers(offset, kind.count)
        if not 0 < count <= _MAX_TAGS:
            raise self._broken(f"the page at byte {offset} has {count} tags")
        layout = f"HH{kind.word}{struct.calcsize('<' + kind.word)}s"
        start = offset + struct.calcsize("<" + kind.count)
        end = start + count * struct.calcsize("<" + layout)
        (following,) = self._numbers(end, kind.word)
        extents = [(offset, end + struct.calcsize("<" + kind.word))]
        tags: list[int] = []
        below: tuple[int, ...] = ()
        for tag, of, number, value in struct.iter_unpack(
            f"{kind.order}{layout}", self._bytes(start, end - start)
        ):
            tags.append(tag)
            place = self._place(offset, tag, of, number, value)
            if place is not None:
                extents.append(place)
            if tag == _SUB_DIRECTORIES:
                below = self._below(of, number, value, place)
        return Directory(offset, tuple(tags), tuple(extents), below), following

    def _place(
        self, offset: int, tag: int, of: int, number: int, value: bytes
    ) -> tuple[int, int] | None:
        """Return where a value lies, if not in the directory itself."""
        if of not in _BYTES:
            raise self._broken(f"tag {tag} of the page at byte {offset} is of no type ({of})")
        length = _BYTES[of] * number
        if length <= len(value):
            return None
        (at,) = struct.unpack(f"{self._kind.order}{self._kind.word}", value)
        if at < 8 or at + length > self._size:
            raise self._broken(
                f"tag {tag} of the page at byte {offset} lies at bytes {at} to {at + length}, but "
                f"the file ends at {self._size}"
            )
        return at, at + length

    def _below(
        self, of: int, number: int, value: bytes, place: tuple[int, int] | None
    ) -> tuple[int, ...]:
        if of not in _POINTERS or number > _MAX_TAGS:
            raise self._broken(f"its smaller images are told by {number} values of type {of}")
        data = value if place is None else self._bytes(place[0], place[1] - place[0])
        return struct.unpack_from(f"{self._kind.order}{number}{_POINTERS[of]}", data)
