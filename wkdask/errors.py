"""The exceptions of wkdask; they know nothing of arrays or files.

Every error that wkdask raises on purpose is a `WkdaskError`, and also the built-in exception that a
Python user would expect::

    WkdaskError
    ├── ArgumentError        ValueError, AssertionError   an argument can't be used
    │   ├── BoundsError      IndexError                   a box leaves the view
    │   ├── DtypeError       TypeError                    voxels of another dtype
    │   ├── AlignmentError                                two tasks would write one file or block
    │   ├── MemoryLimitError MemoryError                  chunks are too large for the workers
    │   └── NothingToDoError                              a layer has all mags, or no voxels
    ├── ReadOnlyError        AssertionError               a write through a read-only view
    ├── StateError           AssertionError               opened twice, closed while not open
    ├── BusyError            RuntimeError                 another run works on the same mag
    ├── MissingError         FileNotFoundError            a path that must exist does not
    ├── ExistsError          FileExistsError              a path that must not exist does
    ├── NameLookupError      KeyError                     a layer or mag that the dataset lacks
    ├── FormatError          ValueError                   a file is not what it must be
    │   └── PropertiesError                               likewise, datasource-properties.json
    ├── StorageError         OSError                      the file system refused, with its `errno`
    │   ├── AccessError      PermissionError
    │   ├── DirectoryError   IsADirectoryError
    │   └── RemoteError                                   a server did not answer as it should
    ├── MissingExtraError    ImportError                  a package that is only needed here
    ├── ClusterError         RuntimeError                 a cluster can't do the work, or is lost
    │   └── WorkerLostError                               the workers that ran a chunk died
    └── ChunkErrors          ExceptionGroup               every failure of a run that collected them

The classes that stand for an `assert` of the original `View` are `AssertionError` too, so that code
written for it keeps working.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from typing import Any

__all__ = [
    "AccessError",
    "AlignmentError",
    "ArgumentError",
    "BoundsError",
    "BusyError",
    "ChunkErrors",
    "ClusterError",
    "DirectoryError",
    "DtypeError",
    "ExistsError",
    "FormatError",
    "MemoryLimitError",
    "MissingError",
    "MissingExtraError",
    "NameLookupError",
    "NothingToDoError",
    "PropertiesError",
    "ReadOnlyError",
    "RemoteError",
    "StateError",
    "StorageError",
    "WkdaskError",
    "WorkerLostError",
    "extra_error",
    "storage_error",
]


class WkdaskError(Exception):
    """The root of every error that wkdask raises on purpose."""


class ArgumentError(WkdaskError, ValueError, AssertionError):
    """An argument can't be used; nothing was read or written."""


class BoundsError(ArgumentError, IndexError):
    """A box does not lie where it must."""


class DtypeError(ArgumentError, TypeError):
    """Voxels come in another dtype than the volume stores."""


class AlignmentError(ArgumentError):
    """Chunks do not lie on the grid that they must lie on."""


class MemoryLimitError(ArgumentError, MemoryError):
    """Chunks are too large for the workers; nothing was run."""


class NothingToDoError(ArgumentError):
    """A layer has the mags that it should get, or nothing to make them from."""


class ReadOnlyError(WkdaskError, AssertionError):
    """A write through a view that may only be read."""


class StateError(WkdaskError, AssertionError):
    """A view was opened twice, or closed while it was not open."""


class BusyError(WkdaskError, RuntimeError):
    """Another run works on the same mag; the text names its owner, and nothing was changed."""


class MissingError(WkdaskError, FileNotFoundError):
    """A file or directory that must exist does not."""


class ExistsError(WkdaskError, FileExistsError):
    """A file or directory that must not exist does."""


class NameLookupError(WkdaskError, KeyError):
    """A dataset has no layer, or a layer no mag, of this name."""

    def __str__(self) -> str:
        # KeyError shows its argument's repr, with quotes around the sentence.
        return str(self.args[0]) if self.args else ""


class FormatError(WkdaskError, ValueError):
    """A file exists but is not what it must be; it is never read as zeros."""


class PropertiesError(FormatError):
    """`datasource-properties.json` can't be understood or contradicts the files."""


class StorageError(WkdaskError, OSError):
    """The file system refused; `errno` and `filename` say what and where."""


class AccessError(StorageError, PermissionError):
    """No permission to read or write a file."""


class DirectoryError(StorageError, IsADirectoryError):
    """A directory lies where a file must be."""


class RemoteError(StorageError):
    """A server did not answer as it should, after several attempts."""


class MissingExtraError(WkdaskError, ImportError):
    """A package is not installed that only this needs; the text names the command."""


class ClusterError(WkdaskError, RuntimeError):
    """A cluster can't do the work, or was lost while it did."""


class WorkerLostError(ClusterError):
    """The workers that ran a chunk died, more often than the scheduler allows."""


class ChunkErrors(WkdaskError, ExceptionGroup[Exception]):  # noqa: N818
    """Every failure of a run with `on_error="collect"`.

    Each exception in `exceptions` carries a note that names its chunk.
    """

    report: Any = None
    """How the run went, a `RunReport`; its `failures` have the index and box of each chunk."""

    def derive(self, excs: Sequence[Any], /) -> Any:
        """Return a group of the same kind, as `ExceptionGroup.split` and `except*` need it."""
        return ChunkErrors(self.message, excs)


_STORAGE_ERRORS: dict[int, tuple[type[StorageError], str]] = {
    errno.EACCES: (AccessError, "ask for permission, or use another path"),
    errno.EPERM: (AccessError, "ask for permission, or use another path"),
    errno.EISDIR: (DirectoryError, "a file was expected: move the directory away"),
    errno.EMFILE: (StorageError, "raise the limit of open files (ulimit -n) or use fewer threads"),
    errno.ENOSPC: (StorageError, "free space and run again"),
    errno.EROFS: (StorageError, "write to a file system that is not mounted read-only"),
}


def extra_error(package: str, extra: str) -> MissingExtraError:
    """Return the error for a package that only an extra brings."""
    return MissingExtraError(f'{package} is not installed. Run: pip install "wkdask[{extra}]"')


def storage_error(error: OSError, path: str | os.PathLike[str], doing: str) -> StorageError:
    """Return `error` as one of ours: the same `errno`, with the path and what to do.

    Parameters
    ----------
    error
        What the operating system said.
    path
        The file or directory that was touched.
    doing
        The attempt in two or three words, such as ``"reading voxels"``.

    Examples
    --------
    >>> import errno
    >>> error = storage_error(OSError(errno.ENOSPC, "No space left"), "x0.wkw", "writing")
    >>> isinstance(error, WkdaskError), error.errno == errno.ENOSPC, error.filename
    (True, True, 'x0.wkw')
    """
    if isinstance(error, StorageError):
        # Of a server, which has said all of it.
        return error
    code = error.errno or 0
    kind, advice = _STORAGE_ERRORS.get(code, (StorageError, ""))
    text = f"{error.strerror or error}, while {doing}" + (f" ({advice})" if advice else "")
    return kind(code, text, os.fspath(path))
