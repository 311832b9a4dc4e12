"""Whether two views, mags, layers or datasets are equal, and where they first differ.

What is said of them is compared before any voxel is read. Voxels are compared file by file, in
parallel and in pieces; what is missing on both sides is not read.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, fields
from functools import partial
from itertools import product
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from wkdask.arrays.view import View
from wkdask.dataset.dataset import Dataset, Layer, MagView, open_mag
from wkdask.dataset.lookup import is_bare_mag
from wkdask.errors import ArgumentError
from wkdask.geometry import BoundingBox, Mag, MagLike, Vec3, mag_list
from wkdask.grids import ChunkGrid, region_of
from wkdask.runtime.executors import ExecutorLike, check_executor
from wkdask.runtime.progress import Progress
from wkdask.runtime.stream import stream_calls
from wkdask.storage.volume import Volume

__all__ = ["Comparison", "Difference", "equal"]

Path_ = str | os.PathLike[str]
Comparable = Path_ | Dataset | Layer | View

Kind = Literal[
    "voxel_size", "unit", "layers", "category", "dtype", "num_channels", "bounding_box", "mags",
    "mag", "voxels",
]  # fmt: skip

# Voxels of one side that a task holds at a time.
_PIECE_BYTES = 2**25


@dataclass(frozen=True, slots=True)
class Difference:
    """Something in which two sides differ."""

    kind: Kind
    """What: `"voxels"`, or what is said of them, such as `"dtype"`."""
    a: Any
    """What the first side has: a value, or the names or mags that the second lacks."""
    b: Any
    """What the second side has."""
    layer: str | None = None
    """The layer, as the first side calls it, if known."""
    mag: Mag | None = None
    """The resolution level, if known."""
    position: Vec3 | None = None
    """The first voxel of `box` that differs, absolute, in voxels of the mag."""
    channel: int | None = None
    """Its channel."""
    box: BoundingBox | None = None
    """The smallest box around what differs in the same piece of the volume, absolute."""

    def __str__(self) -> str:
        where = [f"layer {self.layer}"] if self.layer is not None else []
        where += [f"mag {self.mag}"] if self.mag is not None else []
        if self.position is not None:
            where += [f"voxel {self.position}, channel {self.channel}"]
        place = f" in {', '.join(where)}" if where else ""
        around = f" (differences around it in the box {self.box})" if self.box is not None else ""
        return f"{self.kind.replace('_', ' ')}{place}: {self.a} and {self.b}{around}"


@dataclass(frozen=True, slots=True)
class Comparison:
    """What `equal` found; true if both sides are equal."""

    difference: Difference | None = None
    """The difference that was found first; None if there is none."""
    voxels: int = 0
    """Voxels of each side that were read, counted once per channel."""

    def __bool__(self) -> bool:
        return self.difference is None

    def as_dict(self) -> dict[str, Any]:
        """Return the comparison as plain values, ready for JSON."""
        found = self.difference
        facts = found and {each.name: _plain(getattr(found, each.name)) for each in fields(found)}
        return {"equal": bool(self), "voxels": self.voxels, "difference": facts}

    def __repr__(self) -> str:
        return f"<wkdask.Comparison: {self}>"

    def __str__(self) -> str:
        return "equal" if self.difference is None else f"different: {self.difference}"


def equal(
    a: Comparable,
    b: Comparable,
    *,
    mags: Iterable[MagLike] | None = None,
    executor: ExecutorLike = None,
    retries: int = 0,
    progress: bool = False,
) -> Comparison:
    """Compare two views, mags, layers or datasets exactly, until the first difference.

    Floats are compared by their bits, so that -0.0 is not 0.0, but every NaN equals every other.
    How voxels are stored does not count: block type, file edge, and whether a file of zeros exists
    may differ. So may names, and the largest segment id.

    Parameters
    ----------
    a, b
        Two of the same kind, or paths of datasets or of mag directories. Of views, the boxes must
        be the same, and the mags where both are known. A bare mag directory has no box of its own:
        all of its files count.
    mags
        Of layers and datasets, the only mags to be compared.
    executor
        A `distributed.Client`, a `concurrent.futures.Executor`, or None for the active client or
        dask's threads.
    retries
        How often a chunk is tried again after an exception.
    progress
        Whether to show a bar.

    Returns
    -------
    Comparison
        True if equal, else with the difference that was found first. Layers and mags are compared
        in the order of the first side, but files in parallel: of several that differ, any may be
        the first. Its `box` and `position` tell where it lies.

    Raises
    ------
    ArgumentError
        If the two are not of the same kind, or neither views, layers, datasets nor paths.
    NameLookupError
        If a layer lacks one of `mags`.
    FormatError, StorageError
        If voxels can't be read, with a note that names the chunk.

    Examples
    --------
    >>> ds = wkdask.create("tissue", voxel_size=(8, 8, 8))
    >>> box = wkdask.BoundingBox((0, 0, 0), (20, 20, 20))
    >>> a, b = (
    ...     ds.add_layer(n, "color", "uint8", bounding_box=box).add_mag(1, block_type="raw")
    ...     for n in "ab"
    ... )
    >>> bool(wkdask.equal(a, b))
    True
    >>> b.write(np.full((20, 20, 5), 7, np.uint8), offset=(0, 0, 15))
    >>> difference = wkdask.equal(a, b).difference
    >>> difference.position, difference.a, difference.b
    ((0, 0, 15), 0, 7)
    """
    check_executor(executor)
    sides = _opened(a), _opened(b)
    chosen = None if mags is None else mag_list(mags)
    pairs: list[_Pair] = []
    for found in _walk(*sides, chosen):
        if isinstance(found, Difference):
            return Comparison(found)
        pairs.append(found)
    found_in_voxels = _search(pairs, executor, retries, progress)
    for pair in pairs:
        # Were a whole directory gone by now, its files would have counted as zeros.
        pair.a.check()
        pair.b.check()
    return found_in_voxels


def _plain(value: Any) -> Any:
    if isinstance(value, BoundingBox):
        return {"topleft": list(value.topleft), "size": list(value.size)}
    if isinstance(value, tuple | list):
        return [_plain(part) for part in value]
    is_plain = value is None or isinstance(value, bool | int | str)
    is_number = isinstance(value, float) and math.isfinite(value)
    return value if is_plain or is_number else str(value)


@dataclass(frozen=True, slots=True)
class _Pair:
    """Two volumes of which a box is to be compared, chunk by chunk."""

    a: Volume
    b: Volume
    grid: ChunkGrid
    layer: str | None
    mag: Mag | None


_Item = tuple[int, Vec3]  # which pair, and the position of a chunk


@dataclass(slots=True)
class _Count:
    """How many chunks were compared or skipped, and how many voxels were read."""

    done: int = 0
    skipped: int = 0
    voxels: int = 0

    def show(self, bar: Progress) -> None:
        bar.show(self.done + self.skipped, skipped=self.skipped, voxels=self.voxels)


def _search(pairs: list[_Pair], executor: ExecutorLike, retries: int, progress: bool) -> Comparison:
    """Compare chunks, many of them in flight, until one of them differs."""
    count = _Count()
    call = partial(_compare_chunk, pairs)
    outcomes = stream_calls(
        call, _chunks_on_disk(pairs, count), executor, name="equal", retries=retries
    )
    with closing(outcomes), Progress(sum(len(pair.grid) for pair in pairs), progress) as bar:
        for outcome in outcomes:
            if outcome.error is not None:
                index, position = outcome.item
                box = pairs[index].grid.chunk_box(position)
                outcome.error.add_note(f"while comparing {box} of {pairs[index].a.path}")
                raise outcome.error
            difference, read = outcome.value
            count.voxels += read
            count.done += 1
            count.show(bar)
            if difference is not None:
                return Comparison(difference, count.voxels)
        count.show(bar)
    return Comparison(None, count.voxels)


def _chunks_on_disk(pairs: list[_Pair], count: _Count) -> Iterator[_Item]:
    """Yield the chunks that have a file on either side; count the others as skipped."""
    for index, pair in enumerate(pairs):
        x, y, z = map(range, pair.grid.shape)
        for position in product(x, y, z):
            box = pair.grid.chunk_box(position)
            if pair.a.is_missing(box) and pair.b.is_missing(box):
                count.skipped += 1
            else:
                yield index, position


def _compare_chunk(pairs: list[_Pair], item: _Item) -> tuple[Difference | None, int]:
    """Return the first difference in a chunk, and how many voxels were read."""
    index, position = item
    pair = pairs[index]
    layout = pair.a.layout
    edge = 2 ** (int(math.log2(max(1, _PIECE_BYTES // layout.voxel_bytes))) // 3)
    voxels = 0
    for box in ChunkGrid(pair.grid.chunk_box(position), (edge,) * 3):
        region = region_of(box)
        a, b = pair.a.read(region), pair.b.read(region)
        voxels += a.size
        differs = _differences(a, b)
        if differs.any():
            return _located(pair, box, a, b, differs), voxels
    return None, voxels


def _differences(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.bool_]:
    """Return where two arrays of one dtype and shape differ; NaN equals NaN, but -0.0 not 0.0."""
    bits = f"u{a.itemsize}"
    differs: NDArray[np.bool_] = a.view(bits) != b.view(bits)
    if a.dtype.kind == "f" and differs.any():
        differs &= ~(np.isnan(a) & np.isnan(b))
    return differs


def _located(
    pair: _Pair, box: BoundingBox, a: NDArray[Any], b: NDArray[Any], differs: NDArray[np.bool_]
) -> Difference:
    others = ((0, 2, 3), (0, 1, 3), (0, 1, 2))
    sides = [np.flatnonzero(differs.any(axis=axes)) for axes in others]
    around = BoundingBox.from_corners((s[0] for s in sides), (s[-1] + 1 for s in sides))
    x = int(sides[0][0])
    y = int(differs[:, x].any(axis=(0, 2)).argmax())
    z = int(differs[:, x, y].any(axis=0).argmax())
    c = int(differs[:, x, y, z].argmax())
    position = BoundingBox((x, y, z), (1, 1, 1)).moved_by(box.topleft).topleft
    return Difference(
        "voxels", a[c, x, y, z].item(), b[c, x, y, z].item(), pair.layer, pair.mag, position, c,
        around.moved_by(box.topleft),
    )  # fmt: skip


# --- what is said of them ------------------------------------------------------------------------


def _opened(side: Comparable) -> Dataset | Layer | View:
    if isinstance(side, Dataset | Layer | View):
        return side
    if not isinstance(side, str | os.PathLike):
        raise ArgumentError(
            f"{side!r} can't be compared: give a Dataset, a Layer, a View, or the path of a "
            "dataset or mag directory."
        )
    return open_mag(side) if is_bare_mag(side) else Dataset(side)


def _walk(
    a: Dataset | Layer | View, b: Dataset | Layer | View, mags: list[Mag] | None
) -> Iterator[_Pair | Difference]:
    """Yield the volumes to compare, and differences that can be told without them."""
    if isinstance(a, Dataset) and isinstance(b, Dataset):
        yield from _datasets(a, b, mags)
    elif isinstance(a, Layer) and isinstance(b, Layer):
        yield from _layers(a, b, mags)
    elif isinstance(a, View) and isinstance(b, View):
        if mags is not None:
            raise ArgumentError("mags choose from layers and datasets, but two views were given.")
        yield from _views(a, b)
    else:
        kinds = (type(side).__name__ for side in (a, b))
        raise ArgumentError(f"a {' and a '.join(kinds)} can't be compared: give two of a kind.")


def _datasets(a: Dataset, b: Dataset, mags: list[Mag] | None) -> Iterator[_Pair | Difference]:
    for kind in ("voxel_size", "unit"):
        yield from _facts(kind, getattr(a, kind), getattr(b, kind))
    for side in (a, b):
        side.json.content.check_readable()
    layers_a, layers_b = a.layers, b.layers
    yield from _sets("layers", list(layers_a), list(layers_b))
    for name, layer in layers_a.items():
        yield from _layers(layer, layers_b[name], mags)


def _layers(a: Layer, b: Layer, mags: list[Mag] | None) -> Iterator[_Pair | Difference]:
    for kind in ("category", "dtype", "num_channels", "bounding_box"):
        yield from _facts(kind, getattr(a, kind), getattr(b, kind), a.name)
    if mags is None:
        for side in (a, b):
            side.properties.check_readable()
        mags, others = ([entry.mag for entry in side.properties.mags] for side in (a, b))
        yield from _sets("mags", mags, others, a.name)
    for mag in mags:
        yield from _views(a[mag], b[mag])


def _views(a: View, b: View) -> Iterator[_Pair | Difference]:
    name, mag = a.labels.name, a.mag
    if a.mag is not None and b.mag is not None:
        yield from _facts("mag", a.mag, b.mag, name)
    for kind in ("dtype", "num_channels"):
        yield from _facts(kind, getattr(a, kind), getattr(b, kind), name, mag)
    box = a.bounding_box
    if _has_no_box(a) or _has_no_box(b):
        box = box.extended_by(b.bounding_box)
    else:
        yield from _facts("bounding_box", box, b.bounding_box, name, mag)
    if not box.is_empty:
        x, y, z = map(max, a.volume.layout.file_size, b.volume.layout.file_size)
        yield _Pair(a.volume, b.volume, ChunkGrid(box, (x, y, z)), name, mag)


def _has_no_box(view: View) -> bool:
    return isinstance(view, MagView) and view.layer is None


def _facts(
    kind: Kind, a: Any, b: Any, layer: str | None = None, mag: Mag | None = None
) -> Iterator[Difference]:
    if a != b:
        yield Difference(kind, a, b, layer, mag)


def _sets(kind: Kind, a: list[Any], b: list[Any], layer: str | None = None) -> Iterator[Difference]:
    """Yield a difference with what each side has and the other lacks."""
    only_a, only_b = ([x for x in p if x not in q] for p, q in ((a, b), (b, a)))
    if only_a or only_b:
        yield Difference(kind, tuple(only_a), tuple(only_b), layer)
