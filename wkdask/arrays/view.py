"""`View`: a volume restricted to a box, and the user's way to everything that can be done with it.

The behaviour is that of `webknossos.dataset.view.View` of September 2021, with deviations that
docs/view.md lists. It checks arguments and delegates; it must know neither files nor graphs.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from copy import copy
from dataclasses import replace
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Any, Literal, Self, SupportsIndex, overload

import numpy as np
import wkw
from numpy.typing import ArrayLike, DTypeLike, NDArray

from wkdask.arrays import labelled
from wkdask.arrays.facts import MOST_FILES, mag_facts
from wkdask.arrays.labelled import Coords, Labels
from wkdask.arrays.lazy import VolumeArray, part_of, to_dask
from wkdask.arrays.runs import Job, Tasks, bytes_of_chunk, carry_out
from wkdask.arrays.shown import shown_layer
from wkdask.arrays.store import Align, aligned_array, reads_from, run_store, store_graph
from wkdask.errors import ArgumentError, BoundsError, ReadOnlyError, StateError
from wkdask.geometry import BoundingBox, Mag, Vec3, Vec3Like, per_axis, vec3
from wkdask.grids import (
    ChunkGrid,
    ChunksLike,
    check_apart,
    chunk_grid,
    edge_text,
    paired_grids,
    region_of,
)
from wkdask.runtime import config
from wkdask.runtime.executors import ExecutorLike, active_client
from wkdask.runtime.memory import TASK_BYTES, auto_size
from wkdask.runtime.run import OnError, Run, RunReport, chunk_graph, run_chunks
from wkdask.runtime.stream import task_name
from wkdask.show import cards
from wkdask.show.shown import ShownLayer
from wkdask.storage.header import VolumeHeader, check_addressable
from wkdask.storage.volume import Volume, Voxels, as_voxels, sharing
from wkdask.storage.wkw import WkwVolume, as_wkw

if TYPE_CHECKING:
    import dask.array as da
    import xarray as xr
    from matplotlib.axes import Axes

    from wkdask.show.viewer import Viewer

__all__ = ["View"]

Auto = Literal["auto"]
ChunkFunction = Callable[[tuple["View", int]], object]
ZippedFunction = Callable[[tuple["View", "View", int]], object]


class View:
    """A volume restricted to a box; making one touches no disk.

    Parameters
    ----------
    path_to_mag_view
        A mag directory, such as `color/1`.
    header
        What its `header.wkw` says.
    size
        Voxels per axis `(x, y, z)`, in voxels of the volume's own mag, as everything here.
    global_offset
        The first voxel, `(x, y, z)`.
    is_bounded
        Whether reading and writing outside of the box is refused.
    read_only
        Whether writing is refused.
    mag_view_bbox_at_creation
        The layer's box in this mag, if known: where data end there, an unaligned write is normal.
    labels
        What xarray shall show; see `to_xarray`.

    Examples
    --------
    >>> ds = wkdask.create("tissue", voxel_size=(8, 8, 8))
    >>> layer = ds.add_layer("color", category="color", dtype="uint8",
    ...                      bounding_box=wkdask.BoundingBox((10, 0, 0), (100, 64, 64)))
    >>> view = layer.add_mag(1, block_edge=8, blocks_per_file_edge=8).get_view()
    >>> view.shape
    (1, 100, 64, 64)
    >>> view.to_dask().chunks
    ((1,), (54, 46), (64,), (64,))
    >>> view.write(np.full((100, 64, 64), 7, np.uint8))
    >>> int(view[0, ::2, 5, 5].sum().compute())
    350
    """

    def __init__(
        self,
        path_to_mag_view: str | os.PathLike[str],
        header: wkw.Header,
        size: Vec3Like,
        global_offset: Vec3Like = (0, 0, 0),
        is_bounded: bool = True,
        read_only: bool = False,
        mag_view_bbox_at_creation: BoundingBox | None = None,
        *,
        labels: Labels | None = None,
    ) -> None:
        volume = WkwVolume(os.fspath(path_to_mag_view), VolumeHeader.from_wkw(header))
        box = BoundingBox(global_offset, size)
        self._is_bounded = bool(is_bounded)
        self._mag_box = mag_view_bbox_at_creation
        self._begin(volume, box, bool(read_only), labels or Labels())

    def _begin(self, volume: Volume, box: BoundingBox, read_only: bool, labels: Labels) -> None:
        """Set what a view of a volume needs."""
        options = config.write_options()
        self._volume = volume if options is None else replace(volume, options=options)
        self._box = check_addressable(box)
        self._read_only = read_only
        self._labels = labels
        self._is_open = False

    @property
    def path(self) -> str:
        """The mag directory, absolute."""
        return self._volume.path

    @property
    def volume(self) -> Volume:
        """The mag directory and its header, frozen; what tasks carry."""
        return self._volume

    @property
    def header(self) -> wkw.Header:
        """How voxels are stored, as `wkw` says it."""
        return as_wkw(self._volume).header.to_wkw()

    @property
    def size(self) -> Vec3:
        """Voxels per axis, `(x, y, z)`."""
        return self._box.size

    @property
    def global_offset(self) -> Vec3:
        """The first voxel, `(x, y, z)`."""
        return self._box.topleft

    @property
    def bounding_box(self) -> BoundingBox:
        """The voxels of the view, in absolute positions."""
        return self._box

    @property
    def layer_box(self) -> BoundingBox | None:
        """The layer's box in this mag, if known; as it was when the view was made."""
        return self._mag_box

    @property
    def read_only(self) -> bool:
        """Whether writing is refused."""
        return self._read_only

    @property
    def mag(self) -> Mag | None:
        """The resolution level, if known."""
        return self._labels.mag

    @property
    def category(self) -> str | None:
        """`"color"` or `"segmentation"`, where the layer is known."""
        return self._labels.category

    @property
    def labels(self) -> Labels:
        """What is known beyond the voxels: mag, layer, category, voxel size."""
        return self._labels

    @property
    def num_channels(self) -> int:
        """Values per voxel."""
        return self._volume.layout.num_channels

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """The dtype of one channel."""
        return np.dtype(self._volume.layout.dtype)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """The shape of the view as an array, `(c, x, y, z)`."""
        return (self.num_channels, *self.bounding_box.size)

    @property
    def ndim(self) -> int:
        """Axes of the view as an array: always 4."""
        return 4

    def get_dtype(self) -> type[np.generic]:
        """Return the NumPy type of one channel."""
        return self.dtype.type

    # --- open and close ---------------------------------------------------------------------

    def open(self) -> View:
        """Check once that the volume is there, so that each access need not; return the view.

        Raises
        ------
        StateError
            If the view is open.
        MissingError, FormatError
            If the directory or its header is not what the view expects.
        """
        if self._is_open:
            raise StateError(f"{self._short} is open already; close it before you open it again.")
        self._volume.check()
        self._is_open = True
        return self

    def close(self) -> None:
        """Undo `open`.

        Raises
        ------
        StateError
            If the view is not open.
        """
        if not self._is_open:
            raise StateError(f"{self._short} is not open, so it can't be closed.")
        self._is_open = False

    def __enter__(self) -> View:
        return self if self._is_open else self.open()

    def __exit__(self, *exception: object) -> None:
        if self._is_open:
            self.close()

    # --- voxels, eagerly --------------------------------------------------------------------

    def read(
        self, offset: Vec3Like = (0, 0, 0), size: Vec3Like | None = None
    ) -> NDArray[np.generic]:
        """Read voxels; where there is no file they are zeros.

        Parameters
        ----------
        offset
            The first voxel, relative to `global_offset`.
        size
            Voxels per axis; None means the view's size, not what remains behind `offset`.

        Returns
        -------
        ndarray
            `(c, x, y, z)` in Fortran order.

        Raises
        ------
        BoundsError
            If the box leaves the view, or is empty.
        FormatError
            If a file is there but unreadable.
        """
        box = self.absolute_box(offset, self.size if size is None else size)
        if not self._is_open:
            self._volume.check()
        return self._volume.read(region_of(box))

    def read_bbox(self, bbox: BoundingBox | None = None) -> NDArray[np.generic]:
        """Read a box given relative to the view, or all of it; see `read`."""
        return self.read() if bbox is None else self.read(bbox.topleft, bbox.size)

    def write(self, data: Voxels, offset: Vec3Like = (0, 0, 0)) -> None:
        """Write voxels.

        Compressed files are written whole: what the data do not cover of them is read, kept and
        written again, file by file. A warning says so unless the data end where the layer ends.

        Parameters
        ----------
        data
            `(c, x, y, z)`, or `(x, y, z)` for one channel, in exactly the dtype of the volume.
        offset
            The first voxel, relative to `global_offset`.

        Raises
        ------
        ReadOnlyError
            If the view is read-only.
        ArgumentError
            If dtype, channels or bounds do not fit; nothing is written.
        """
        self._write(data, offset)

    def get_view(
        self,
        offset: Vec3Like | None = None,
        size: Vec3Like | None = None,
        read_only: bool | None = None,
    ) -> View:
        """Return a view of a part.

        Parameters
        ----------
        offset
            Its first voxel, relative to this view's; None is (0, 0, 0).
        size
            Its voxels per axis; None is this view's size.
        read_only
            None inherits. Only a read-only part may leave this view.

        Raises
        ------
        ReadOnlyError
            If this view is read-only and the part shall not be.
        BoundsError
            If the part has no voxel, or leaves this view without being read-only.
        """
        read_only = self._inherited(read_only)
        box = self.absolute_box(
            (0, 0, 0) if offset is None else offset,
            self.size if size is None else size,
            bounded=not read_only,
        )
        return self.restricted_to(box, read_only=read_only)

    def with_options(
        self,
        *,
        fsync: bool | None = None,
        keep_zeros: bool | None = None,
        hc_level: int | None = None,
    ) -> Self:
        """Return the same view, which writes with other options; None leaves one as it is.

        Parameters
        ----------
        fsync
            Whether each file is on the disk when it counts as written, so that a power cut loses
            nothing. By default only killed processes lose nothing.
        keep_zeros
            Whether files of nothing but zeros are written. By default they are left out, and
            removed, since missing means zero.
        hc_level
            How hard LZ4HC tries, from 3 (fast) to 12 (small); by default as each block deserves.

        Raises
        ------
        ArgumentError
            If a level does not exist.

        Examples
        --------
        >>> ds = wkdask.create("tissue", voxel_size=(8, 8, 8))
        >>> mag = ds.add_layer("color", "color", "uint8").add_mag(1)
        >>> careful = mag.with_options(fsync=True)
        """
        given = {"fsync": fsync, "keep_zeros": keep_zeros, "hc_level": hc_level}
        changes = {k: v for k, v in given.items() if v is not None}
        return self.with_volume(self._volume.with_options(**changes))

    # --- voxels, lazily ---------------------------------------------------------------------

    def to_dask(self, chunks: ChunksLike = "file") -> da.Array:
        """Return the view as a lazy dask array `(c, x, y, z)`; nothing is read yet.

        Parameters
        ----------
        chunks
            `"file"`: borders on those of files. `"auto"`: about dask's `array.chunk-size`, in whole
            files or fractions of one. Or an edge length, three of them `(x, y, z)`, or four
            `(c, x, y, z)`, where -1 spans the axis. Edge lengths cut on absolute multiples.

        Raises
        ------
        ArgumentError
            If `chunks` is none of these.
        MissingError
            If the directory is gone.
        """
        return to_dask(self._volume, self.bounding_box, chunks)

    def __getitem__(self, index: object) -> da.Array:
        """Return a lazy part, indexed like the array `(c, x, y, z)` of the view's voxels.

        Integers, slices with any step, `...` and None read exactly the voxels they name.
        """
        return part_of(self._volume, self.bounding_box, index)

    def __setitem__(self, index: object, value: object) -> None:
        """Refuse what `dask.array.store` and NumPy would do without looking at files."""
        raise ArgumentError(
            "a view is no target of an assignment: use view.store(x) or view.write(x)."
        )

    def __array__(
        self, dtype: DTypeLike | None = None, copy: bool | None = None
    ) -> NDArray[np.generic]:
        """Read everything, as `np.asarray(view)` asks for."""
        return np.asarray(self._volume.read(region_of(self.bounding_box)), dtype=dtype)

    def to_xarray(
        self, chunks: ChunksLike | None = "file", coords: Coords = "voxel"
    ) -> xr.DataArray:
        """Return the view as a lazy `xarray.DataArray`, dims c, x, y, z; nothing is read yet.

        Attributes tell mag, category, voxel size and unit; `wkw` has [more](xarray.md).

        Parameters
        ----------
        chunks
            As in `to_dask`. None: without dask, what is indexed is read when its values are asked
            for.
        coords
            `"voxel"`: positions of each voxel's corner in voxels of mag 1 (of the volume's own mag
            where that is not known). `"physical"`: its centre in the unit of the voxel size.

        Raises
        ------
        ArgumentError
            If `chunks` or `coords` is none of these, or physical coordinates lack a voxel size.
        """
        box = self.bounding_box
        array = VolumeArray.of_box(self._volume, box) if chunks is None else self.to_dask(chunks)
        return labelled.to_dataarray(array, box, self._labels, coords, self._volume)

    @overload
    def store(
        self, x: ArrayLike, offset: Vec3Like = ..., align: Align = ...,
        compute: Literal[True] = ..., *, executor: ExecutorLike = ..., retries: int = ...,
        resume: bool | str = ..., check_memory: bool = ..., progress: bool = ...,
    ) -> RunReport: ...  # fmt: skip

    @overload
    def store(
        self, x: ArrayLike, offset: Vec3Like = ..., align: Align = ..., *,
        compute: Literal[False], executor: ExecutorLike = ..., retries: int = ...,
        resume: bool | str = ..., check_memory: bool = ..., progress: bool = ...,
    ) -> da.Array: ...  # fmt: skip

    @overload
    def store(
        self, x: ArrayLike, offset: Vec3Like = ..., align: Align = ...,
        compute: bool = ..., *, executor: ExecutorLike = ..., retries: int = ...,
        resume: bool | str = ..., check_memory: bool = ..., progress: bool = ...,
    ) -> RunReport | da.Array: ...  # fmt: skip

    def store(
        self,
        x: ArrayLike,
        offset: Vec3Like = (0, 0, 0),
        align: Align = "raise",
        compute: bool = True,
        *,
        executor: ExecutorLike = None,
        retries: int = 0,
        resume: bool | str = False,
        check_memory: bool = True,
        progress: bool = False,
    ) -> RunReport | da.Array:
        """Write a dask array, one task a chunk, without locks.

        A chunk may cover a compressed file partly: the one task that owns the file merges it.

        What is computed from the same volume should be stored into another one. A cluster may run
        a task twice, which would change the voxels twice: there it is refused. Elsewhere it works
        voxel by voxel, but not for what needs *other* voxels (a shifted copy, a filter with a
        halo), which may be overwritten before they are read.

        Parameters
        ----------
        x
            A dask or NumPy array, `(c, x, y, z)`, or `(x, y, z)` for one channel.
        offset
            Where its first voxel goes, relative to the first voxel of `to_dask()`.
        align
            `"raise"` refuses chunks of which two would write one file (compressed) or one block
            (raw); `"rechunk"` moves their borders.
        compute
            False returns the lazy writes: a dask array with the voxels written per chunk.
        executor
            A `distributed.Client`, a `concurrent.futures.Executor`, or None for the active client
            or dask's threads.
        retries, resume, check_memory, progress
            See `for_each_chunk`. What makes a job the same is the name of the array, which dask
            computes from what it consists of; of a NumPy array, its values.

        Returns
        -------
        RunReport
            What was done, skipped and written; or a dask array if `compute` is False.

        Raises
        ------
        ReadOnlyError, AlignmentError, DtypeError, BoundsError, ArgumentError
            Before anything runs, so that nothing is written.
        """
        run = Run(executor, "raise", retries, progress, name="store")
        view = self.bounded()
        view.check_writable()
        start = vec3(offset, "offset")
        if min(start) < 0:
            raise BoundsError(f"offset is {start}, but must not be negative.")
        corner = view.bounding_box.moved_by(start).topleft
        array = aligned_array(x, view.volume, corner, align=align)
        view.absolute_box(start, array.shape[1:])
        if reads_from(array, view.volume) and active_client(executor) is not None:
            raise ArgumentError(
                f"the data are computed from {self.path} itself, and a cluster may run a task "
                "twice. Store them into another mag, or pass a thread pool as executor."
            )
        if not compute:
            return store_graph(array, view.volume, corner)
        x_size, y_size, z_size = map(max, array.chunks[1:])
        tasks = Tasks(
            array.npartitions,
            (x_size, y_size, z_size),
            2 * prod(map(max, array.chunks)) * array.itemsize + TASK_BYTES,
        )
        # dask gives a NumPy array another name each time, so its values identify it.
        data = x if isinstance(x, np.ndarray) else array.name
        job = Job(view, None, (data, array.chunks, corner))
        go = partial(run_store, array, view.volume, corner)
        return carry_out(go, job, tasks, run, resume=resume, check_memory=check_memory)

    # --- functions of chunks ----------------------------------------------------------------

    @overload
    def for_each_chunk(
        self, work_on_chunk: ChunkFunction,
        chunk_size: SupportsIndex | Vec3Like | Auto | None = ...,
        executor: ExecutorLike = ..., *, compute: Literal[True] = ...,
        on_error: OnError = ..., retries: int = ..., resume: bool | str = ...,
        check_memory: bool = ..., progress: bool = ...,
    ) -> RunReport: ...  # fmt: skip

    @overload
    def for_each_chunk(
        self, work_on_chunk: ChunkFunction,
        chunk_size: SupportsIndex | Vec3Like | Auto | None = ...,
        executor: ExecutorLike = ..., *, compute: Literal[False], on_error: OnError = ...,
        retries: int = ..., resume: bool | str = ..., check_memory: bool = ...,
        progress: bool = ...,
    ) -> da.Array: ...  # fmt: skip

    @overload
    def for_each_chunk(
        self, work_on_chunk: ChunkFunction,
        chunk_size: SupportsIndex | Vec3Like | Auto | None = ...,
        executor: ExecutorLike = ..., *, compute: bool, on_error: OnError = ...,
        retries: int = ..., resume: bool | str = ..., check_memory: bool = ...,
        progress: bool = ...,
    ) -> RunReport | da.Array: ...  # fmt: skip

    def for_each_chunk(
        self,
        work_on_chunk: ChunkFunction,
        chunk_size: SupportsIndex | Vec3Like | Auto | None = None,
        executor: ExecutorLike = None,
        *,
        on_error: OnError = "raise",
        retries: int = 0,
        resume: bool | str = False,
        check_memory: bool = True,
        progress: bool = False,
        compute: bool = True,
    ) -> RunReport | da.Array:
        """Run a function over the chunks of the view.

        However many chunks there are, only some hundred are in flight at a time. A worker that dies
        has its chunks run again by others, so a chunk may run twice: what the function writes
        should depend on nothing that it writes.

        Parameters
        ----------
        work_on_chunk
            Called with one tuple `(chunk_view, i)`; `i` counts from 0, x outermost, z fastest. What
            it returns is dropped. `chunk_view` can't be written outside of the chunk.
        chunk_size
            Voxels per axis, one number or three; chunks lie on absolute multiples of it, clipped at
            the view. None is one file, `"auto"` the largest cube of files that fits into memory and
            leaves a chunk for every thread.
        executor
            A `distributed.Client`, a `concurrent.futures.Executor`, or None for the active client
            or dask's threads.
        on_error
            `"raise"`: the first exception ends the run. `"collect"`: every chunk runs, and
            `ChunkErrors` raises all failures at the end.
        retries
            How often a chunk is tried again after an exception.
        resume
            Whether to note in a journal beside the files which chunks are done, and to skip those
            of an earlier run of the same job: the same function, view and chunk size. A chunk
            whose files were changed since runs again. A function is recognised by its own code and
            that of its module, but not by what other modules do: after a change there, or for a
            function that can't be recognised, name the job by a text of your own.
        check_memory
            Whether to refuse chunks of which two copies per thread exceed a worker's memory.
        progress
            Whether to show a bar.
        compute
            False returns the lazy run, a dask array of one receipt per chunk, to be combined with
            others; it takes `on_error` along, but neither retries nor a journal.

        Returns
        -------
        RunReport
            What was done, skipped and written; or a dask array if `compute` is False.

        Raises
        ------
        AlignmentError
            If the view is writable and two chunks would share a file (compressed) or a block (raw).
        MemoryLimitError
            If the chunks are too large for the workers; nothing was run.
        WorkerLostError
            If a chunk killed its workers, with a note that names the chunk.
        Exception
            What `work_on_chunk` raised, with a note that names the chunk.
        """
        _check_callable(work_on_chunk)
        run = Run(executor, on_error, retries, progress, name=_name_of(work_on_chunk))
        view = self.bounded()
        grid = _grid(view, chunk_size, executor)
        if not view.read_only:
            layout = view.volume.layout
            check_apart(grid, layout.write_size, layout.write_unit)
        work = partial(_work_on_chunk, view, grid, work_on_chunk)
        if not compute:
            name = task_name(run.name, view.path)
            return chunk_graph(work, grid, name=name, on_error=on_error)
        tasks = Tasks(len(grid), grid.chunk_size, 2 * bytes_of_chunk(grid, view.volume))
        job = Job(view, work_on_chunk, (grid.chunk_size,))
        go = partial(run_chunks, work, grid)
        return carry_out(go, job, tasks, run, resume=resume, check_memory=check_memory)

    @overload
    def for_zipped_chunks(
        self, work_on_chunk: ZippedFunction, target_view: View,
        source_chunk_size: SupportsIndex | Vec3Like | None = ...,
        target_chunk_size: SupportsIndex | Vec3Like | None = ...,
        executor: ExecutorLike = ..., *, compute: Literal[True] = ...,
        on_error: OnError = ..., retries: int = ..., resume: bool | str = ...,
        check_memory: bool = ..., progress: bool = ...,
    ) -> RunReport: ...  # fmt: skip

    @overload
    def for_zipped_chunks(
        self, work_on_chunk: ZippedFunction, target_view: View,
        source_chunk_size: SupportsIndex | Vec3Like | None = ...,
        target_chunk_size: SupportsIndex | Vec3Like | None = ...,
        executor: ExecutorLike = ..., *, compute: Literal[False], on_error: OnError = ...,
        retries: int = ..., resume: bool | str = ..., check_memory: bool = ...,
        progress: bool = ...,
    ) -> da.Array: ...  # fmt: skip

    @overload
    def for_zipped_chunks(
        self, work_on_chunk: ZippedFunction, target_view: View,
        source_chunk_size: SupportsIndex | Vec3Like | None = ...,
        target_chunk_size: SupportsIndex | Vec3Like | None = ...,
        executor: ExecutorLike = ..., *, compute: bool, on_error: OnError = ...,
        retries: int = ..., resume: bool | str = ..., check_memory: bool = ...,
        progress: bool = ...,
    ) -> RunReport | da.Array: ...  # fmt: skip

    def for_zipped_chunks(
        self,
        work_on_chunk: ZippedFunction,
        target_view: View,
        source_chunk_size: SupportsIndex | Vec3Like | None = None,
        target_chunk_size: SupportsIndex | Vec3Like | None = None,
        executor: ExecutorLike = None,
        *,
        on_error: OnError = "raise",
        retries: int = 0,
        resume: bool | str = False,
        check_memory: bool = True,
        progress: bool = False,
        compute: bool = True,
    ) -> RunReport | da.Array:
        """Run a function over corresponding chunks of this view, the source, and a target.

        Parameters
        ----------
        work_on_chunk
            Called with one tuple `(source_chunk_view, target_chunk_view, i)`. The source's views
            are read-only.
        target_view
            May differ in size by a constant ratio per axis.
        source_chunk_size
            None is the target's times that ratio.
        target_chunk_size
            A multiple of the target's file edge; None is one file.
        executor, on_error, retries, resume, check_memory, progress, compute
            See `for_each_chunk`; the journal lies in the target.

        Returns
        -------
        RunReport
            What was done, skipped and written; or a dask array if `compute` is False.

        Raises
        ------
        ArgumentError
            If a view is empty, or chunks have another ratio than the views.
        AlignmentError
            If chunks of the target share files, or chunks do not correspond.
        MemoryLimitError, WorkerLostError, Exception
            As `for_each_chunk`.
        """
        _check_callable(work_on_chunk)
        if not isinstance(target_view, View):
            raise ArgumentError(f"target_view is {target_view!r}, but must be a View.")
        run = Run(executor, on_error, retries, progress, name=_name_of(work_on_chunk))
        source, target = self.bounded(), target_view.bounded()
        grids = paired_grids(
            source.bounding_box,
            target.bounding_box,
            None if source_chunk_size is None else per_axis(source_chunk_size, "source_chunk_size"),
            None if target_chunk_size is None else per_axis(target_chunk_size, "target_chunk_size"),
            target.volume.layout.file_size,
        )
        work = partial(_work_on_pair, source, grids[0], target, grids[1], work_on_chunk)
        grid = grids[1]
        if not compute:
            name = task_name(run.name, target.path)
            return chunk_graph(work, grid, name=name, on_error=on_error)
        needed = sum(map(bytes_of_chunk, grids, (source.volume, target.volume)))
        tasks = Tasks(len(grid), grid.chunk_size, needed)
        job = Job(target, work_on_chunk, (grid.chunk_size,), (source,))
        go = partial(run_chunks, work, grid)
        return carry_out(go, job, tasks, run, resume=resume, check_memory=check_memory)

    # --- for code that works on any view --------------------------------------------------------

    def bounded(self) -> View:
        """Return the view that arrays and chunk functions cover: this one, or of a mag its box."""
        return self

    def restricted_to(self, box: BoundingBox, *, read_only: bool) -> View:
        """Return a view of an absolute box, without checks of the box."""
        part: View = object.__new__(View)
        vars(part).update(
            _volume=self._volume, _box=check_addressable(box), _is_bounded=True,
            _read_only=read_only, _mag_box=self.layer_box, _labels=self._labels, _is_open=False,
        )  # fmt: skip
        return part

    def with_volume(self, volume: Volume) -> Self:
        """Return the same view of a volume whose files are written in another way."""
        other = copy(self)
        other._volume = volume  # noqa: SLF001
        return other

    def check_writable(self) -> None:
        """Raise `ReadOnlyError` if the view is read-only."""
        if self._read_only:
            raise ReadOnlyError(
                f"{self._short} is read-only. Get a view with read_only=False to write."
            )

    def absolute_box(
        self, offset: Vec3Like, size: Vec3Like, *, bounded: bool | None = None
    ) -> BoundingBox:
        """Return the absolute box of a part given relative to the view.

        Raises
        ------
        BoundsError
            If a number is negative, or the box is empty or leaves the view.
        """
        start, extent = vec3(offset, "offset"), vec3(size, "size")
        if min(start) < 0:
            raise BoundsError(f"offset is {start}, but must not be negative.")
        if min(extent) < 1:
            raise BoundsError(f"size is {extent}, but must be at least 1 on every axis.")
        part = BoundingBox(start, extent)
        if (self._is_bounded if bounded is None else bounded) and not BoundingBox(
            (0, 0, 0), self.size
        ).contains_bbox(part):
            raise BoundsError(
                f"the box {part} (relative to the view) leaves the view, which has size "
                f"{self.size}. {self._advice(part)}"
            )
        return check_addressable(part.moved_by(self.global_offset))

    # --- to look at -------------------------------------------------------------------------

    def plot(
        self,
        x: float | None = None,
        y: float | None = None,
        z: float | None = None,
        *,
        labels: View | None = None,
        **options: Any,
    ) -> dict[str, Axes]:
        """Draw the three planes through a point, to scale, with a scale bar; needs matplotlib.

        Only the planes are read, and of large ones only as many voxels as there are pixels.

        Parameters
        ----------
        x, y, z
            The point, in voxels of mag 1 (of the volume's own mag where that is not known); None is
            the middle.
        labels
            A segmentation that is drawn over it, half transparent; it may be of another mag.
        options
            `channel`, `vmin` and `vmax`, as in `ArrayAccessor.plot`.

        Returns
        -------
        dict
            The axes of matplotlib, by `"xy"`, `"zy"` and `"xz"`.

        Raises
        ------
        MissingExtraError
            If matplotlib is not installed.
        ArgumentError
            If the point lies outside.

        Examples
        --------
        >>> ds = wkdask.create("tissue", voxel_size=(8, 8, 8))
        >>> box = wkdask.BoundingBox((0, 0, 0), (64, 64, 64))
        >>> mag = ds.add_layer("color", "color", "uint8", bounding_box=box).add_mag(1)
        >>> mag.write(np.full((64, 64, 64), 7, np.uint8))
        >>> sorted(mag.plot(z=20))
        ['xy', 'xz', 'zy']
        """
        over = None if labels is None else self._labels_over(labels).to_xarray(chunks=None)
        axes: dict[str, Axes] = self.to_xarray(chunks=None).wkw.plot(
            x, y, z, labels=over, **options
        )
        return axes

    def _labels_over(self, labels: View) -> View:
        """Return labels where this view has voxels; they are zero where there are none."""
        if not isinstance(labels, View):
            raise ArgumentError(
                f"labels is {labels!r}, but must be a view of a segmentation, or its layer."
            )
        if labels.category == "color":
            raise ArgumentError("labels is a view of grey values, but must be of a segmentation.")
        if labels.mag is None or self.mag is None:
            return labels
        box = self.bounding_box.scaled_by(self.mag)
        box = box.align_with_mag(labels.mag, ceil=True).in_mag(labels.mag)
        starts = zip(box.topleft, labels.global_offset, strict=True)
        return labels.get_view([a - b for a, b in starts], box.size, read_only=True)

    def shown(self) -> ShownLayer:
        """Return what `show` and pictures need to know of the view; it reads from there."""
        return shown_layer([self])

    def show(self, **traits: Any) -> Viewer:
        """Show a viewer in a notebook; needs `wkdask[viewer]`.

        Parameters
        ----------
        traits
            Where it begins, such as `position=(100, 200, 30)`, in voxels of mag 1, `zoom` or
            `planes="xy"`; see `Viewer`.

        Raises
        ------
        MissingExtraError
            If anywidget is not installed.
        """
        from wkdask.show.viewer import Viewer

        return Viewer([self.shown()], **traits)

    # --- identity ---------------------------------------------------------------------------

    def __repr__(self) -> str:
        return cards.view_text(type(self).__name__, self.path, mag_facts(self))

    def _repr_html_(self) -> str:
        """Return a card with a drawing of the box and its files, as Jupyter shows it."""
        return cards.view_html(type(self).__name__, self.path, mag_facts(self, MOST_FILES))

    @property
    def _short(self) -> str:
        """The view in one line, for messages."""
        return f"{type(self).__name__}({self.path!r}, {self.bounding_box})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, View):
            return NotImplemented
        return self._identity() == other._identity()

    def __hash__(self) -> int:
        # The box of a mag can grow while the view is a key somewhere.
        return hash(self.path)

    def __dask_tokenize__(self) -> tuple[object, ...]:
        from dask.base import normalize_token

        return tuple(normalize_token(part) for part in self._identity())

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_is_open": False}

    def _identity(self) -> tuple[object, ...]:
        flags = (self._is_bounded, self._read_only)
        return (type(self).__qualname__, self._volume, self.bounding_box, flags, self.layer_box)

    # --- helpers ----------------------------------------------------------------------------

    def _inherited(self, read_only: bool | None) -> bool:
        if read_only is None:
            return self._read_only
        if self._read_only and not read_only:
            raise ReadOnlyError(
                f"{self._short} is read-only, so a part of it can't be written either."
            )
        return bool(read_only)

    def _write(self, data: Voxels, offset: Vec3Like) -> BoundingBox:
        """Write as `write` says, which calls this, and return the absolute box."""
        self.check_writable()
        voxels = as_voxels(data)
        if voxels.ndim == 3 and self.num_channels == 1:
            voxels = voxels[np.newaxis]
        self._volume.check_voxels(voxels.dtype, voxels.shape)
        box = self.absolute_box(offset, voxels.shape[1:])
        self._warn_if_unaligned(box)
        with sharing(self._volume):
            self._volume.write(box, voxels)
        return box

    def _advice(self, part: BoundingBox) -> str:
        """Return what may be meant by a box that leaves the view."""
        whole = BoundingBox((0, 0, 0), self.size)
        if whole.contains_bbox(BoundingBox(part.topleft, part.size[::-1])):
            return "Axes are (x, y, z): if yours are (z, y, x), transpose them, such as by data.T."
        if self.mag not in (None, Mag(1)) and whole.contains_bbox(
            part.align_with_mag(self.mag or Mag(1), ceil=True).in_mag(self.mag or Mag(1))
        ):
            return (
                f"Positions count voxels of mag {self.mag}: divide those of mag 1 by its factors, "
                "such as by box.in_mag(mag)."
            )
        return "Give offset and size that fit, or take a larger view."

    def _warn_if_unaligned(self, box: BoundingBox) -> None:
        layout = self._volume.layout
        if layout.write_unit != "file":
            return
        sides = (*box.topleft, *box.bottomright)
        edges = layout.file_size * 2
        # Where the layer ends, there are no voxels beyond that would be read and written again.
        layer = self.layer_box
        ends = (*layer.topleft, *layer.bottomright) if layer else [None] * 6
        axes = zip(sides, ends, edges, strict=True)
        if any(at % edge and at != end for at, end, edge in axes):
            # The text is the same for every box, so that Python shows it once and not per chunk.
            warnings.warn(
                f"writing parts of compressed files is slow: the whole files (edge "
                f"{edge_text(layout.file_size)} in {self.path}) are read and written again. Write "
                "boxes that lie on multiples of the file edge.",
                RuntimeWarning,
                stacklevel=4,
            )


def _grid(
    view: View, chunk_size: SupportsIndex | Vec3Like | Auto | None, executor: ExecutorLike
) -> ChunkGrid:
    """Return the chunks that `for_each_chunk` runs over."""
    box, layout = view.bounding_box, view.volume.layout
    if not isinstance(chunk_size, str):
        if chunk_size is None:
            return chunk_grid(box, layout.file_size)
        return chunk_grid(box, per_axis(chunk_size, "chunk_size"))
    if chunk_size != "auto":
        raise ArgumentError(f'chunk_size is {chunk_size!r}, but must be "auto" or numbers.')
    size = auto_size(
        lambda size: 2 * bytes_of_chunk(chunk_grid(box, size), view.volume),
        lambda size: len(chunk_grid(box, size)),
        layout.write_size,
        executor,
    )
    return chunk_grid(box, size)


def _name_of(function: Callable[..., object]) -> str:
    """Return what a function is called; one that is bound to arguments as it would be without."""
    while isinstance(function, partial):
        function = function.func
    return getattr(function, "__name__", type(function).__name__).strip("<>")


def _check_callable(function: object) -> None:
    if not callable(function):
        raise ArgumentError(f"work_on_chunk is {function!r}, but must be a function.")


def _work_on_chunk(view: View, grid: ChunkGrid, function: ChunkFunction, position: Vec3) -> None:
    chunk = view.restricted_to(grid.chunk_box(position), read_only=view.read_only)
    function((chunk, grid.index(position)))


def _work_on_pair(
    source: View,
    source_grid: ChunkGrid,
    target: View,
    target_grid: ChunkGrid,
    function: ZippedFunction,
    position: Vec3,
) -> None:
    source_chunk = source.restricted_to(source_grid.chunk_box(position), read_only=True)
    target_box = target_grid.chunk_box(position)
    target_chunk = target.restricted_to(target_box, read_only=target.read_only)
    function((source_chunk, target_chunk, target_grid.index(position)))
