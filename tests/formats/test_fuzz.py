"""Broken sources, cut or changed anywhere: the voxels are right, or it is an error of ours."""

from __future__ import annotations

import io
import logging
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wkdask.errors import WkdaskError
from wkdask.formats import ome_zarr as zarrs
from wkdask.formats import tiff as tiffs

tifffile = pytest.importorskip("tifffile")
zarr = pytest.importorskip("zarr")
images = pytest.importorskip("PIL.Image")

FEW, MANY = 40, 5000


def smooth(*shape: int, dtype: str = "uint8") -> Any:
    """Voxels that can be compressed, of which no two slices are alike."""
    places = np.indices(shape).sum(0) // 3 + np.arange(shape[0]).reshape(
        -1, *[1] * (len(shape) - 1)
    )
    noise = np.random.default_rng(0).integers(0, 9, shape)
    return (places * 5 + noise).astype(dtype)


def by_tifffile(shape: tuple[int, ...], dtype: str = "uint8", **options: Any) -> Any:
    def write() -> tuple[bytes, Any]:
        array = smooth(*shape, dtype=dtype)
        file = io.BytesIO()
        tifffile.imwrite(file, array, **({"photometric": "minisblack"} | options))
        return file.getvalue(), array

    return write


def page_by_page(**options: Any) -> Any:
    def write() -> tuple[bytes, Any]:
        array = smooth(5, 31, 42, dtype="uint16")
        file = io.BytesIO()
        with tifffile.TiffWriter(file) as writer:
            for plane in array:
                writer.write(plane, photometric="minisblack", contiguous=False, **options)
        return file.getvalue(), array

    return write


def by_pillow(compression: str | None) -> Any:
    def write() -> tuple[bytes, Any]:
        array = smooth(5, 31, 42)
        first, *others = map(images.fromarray, array)
        file = io.BytesIO()
        first.save(file, "TIFF", save_all=True, append_images=others, compression=compression)
        return file.getvalue(), array

    return write


def by_hand(order: str) -> Any:
    """Directories first, then all voxels, as other programs do."""

    def write() -> tuple[bytes, Any]:
        array = smooth(5, 31, 42)
        tags = 9
        length = 2 + tags * 12 + 4
        data = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8)
        for z in range(5):
            values = {256: 42, 257: 31, 258: 8, 259: 1, 262: 1, 273: 8 + 5 * length + z * 1302,
                      277: 1, 278: 31, 279: 1302}  # fmt: skip
            data += struct.pack(order + "H", tags)
            data += b"".join(struct.pack(order + "HHII", t, 4, 1, v) for t, v in values.items())
            data += struct.pack(order + "I", 8 + (z + 1) * length if z < 4 else 0)
        return data + array.tobytes(), array

    return write


PLANES = (5, 31, 42)
TIFFS: dict[str, Callable[[], tuple[bytes, Any]]] = {
    "plain": by_tifffile(PLANES, metadata=None),
    "described": by_tifffile(PLANES),
    "one page for all": by_tifffile(PLANES, truncate=True),
    "strips": by_tifffile(PLANES, "uint16", rowsperstrip=8, metadata=None),
    "zlib": by_tifffile(PLANES, compression="zlib", rowsperstrip=8),
    "zlib, plain": by_tifffile(PLANES, compression="zlib", rowsperstrip=8, metadata=None),
    "lzw": by_tifffile(PLANES, "uint16", compression="lzw", predictor=True, metadata=None),
    "packbits": by_tifffile(PLANES, compression="packbits", metadata=None),
    "zstd": by_tifffile(PLANES, compression="zstd", rowsperstrip=8),
    "tiles": by_tifffile(PLANES, tile=(16, 16), metadata=None),
    "zlib tiles": by_tifffile(PLANES, "uint16", tile=(16, 32), compression="zlib"),
    "big": by_tifffile(PLANES, bigtiff=True, metadata=None),
    "the other order": by_tifffile(PLANES, "uint16", byteorder=">", metadata=None),
    "imagej": by_tifffile(PLANES, imagej=True, photometric=None, metadata={"axes": "ZYX"}),
    "imagej, one page": by_tifffile(
        PLANES, imagej=True, photometric=None, truncate=True, metadata={"axes": "ZYX"}
    ),
    "ome": by_tifffile(PLANES, "uint16", ome=True, metadata={"axes": "ZYX"}),
    "colours": by_tifffile((5, 31, 42, 3), photometric="rgb"),
    "planes of colours": by_tifffile((5, 3, 31, 42), photometric="rgb", planarconfig="separate"),
    "series": page_by_page(),
    "zlib series": page_by_page(compression="zlib"),
    "pillow": by_pillow(None),
    "pillow, lzw": by_pillow("tiff_lzw"),
    "pillow, deflate": by_pillow("tiff_adobe_deflate"),
    "by hand": by_hand("<"),
    "by hand, the other order": by_hand(">"),
}


def read_tiff(path: Path) -> Any:
    """Return all voxels, `(c, x, y, z)`."""
    stack = tiffs.read(path).levels[0].source
    assert np.prod(stack.shape) < 1e7, f"an image of {stack.shape}"
    return stack[:, :, :, :]


def as_read(array: Any) -> Any:
    axes = {3: "zyx", 4: "zyxc" if array.shape[-1] == 3 else "zcyx"}[array.ndim]
    if "c" not in axes:
        array, axes = array[..., np.newaxis], "zyxc"
    return np.einsum(f"{axes}->cxyz", array)


class Told(logging.Handler):
    """Counts what tifffile complains of."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += 1


def by_others(path: Path) -> Any:
    """Return what tifffile reads of a file, None if it complains."""
    told = Told()
    logging.getLogger("tifffile").addHandler(told)
    try:
        with tifffile.TiffFile(path) as file:
            pages = [page.asarray() for page in file.pages]
            image = np.stack(pages) if len(pages) > 1 else file.asarray()
        return None if told.count else as_read(image)
    except Exception:
        return None
    finally:
        logging.getLogger("tifffile").removeHandler(told)


def mutated(data: bytes, rng: np.random.Generator, places: list[int]) -> bytes:
    """Return data of which a few bytes, bits or words are others."""
    changed = bytearray(data)
    for _ in range(rng.integers(1, 3)):
        at = int(rng.choice(places))
        what = rng.integers(6)
        if what == 0:
            changed[at] = rng.integers(256)
        elif what == 1:
            changed[at] ^= 1 << int(rng.integers(8))
        elif what == 2:
            changed[at : at + 4] = bytes(len(changed[at : at + 4]))
        elif what == 3 and at + 4 <= len(data):
            (number,) = struct.unpack_from("<I", changed, at)
            struct.pack_into("<I", changed, at, (number + int(rng.integers(-9, 10))) % 2**32)
        elif what == 4:
            changed[at] = (changed[at] + int(rng.integers(-2, 3))) % 256
        else:
            other = int(rng.choice(places))
            changed[at], changed[other] = changed[other], changed[at]
    allowed = np.zeros(len(data), bool)
    allowed[places] = True
    before, after = np.frombuffer(data, np.uint8), np.frombuffer(bytes(changed), np.uint8)
    return np.where(allowed, after, before).tobytes()


@pytest.fixture(autouse=True)
def quiet() -> Any:
    """tifffile logs what is broken."""
    logger = logging.getLogger("tifffile")
    logger.propagate = False
    yield
    logger.propagate = True


def outcome(read: Callable[[], Any]) -> Any:
    """Return the voxels, or None if there is an error of ours; others go through."""
    try:
        return read()
    except WkdaskError:
        return None


@pytest.mark.parametrize(
    "count", [FEW, pytest.param(MANY, marks=[pytest.mark.slow, pytest.mark.timeout(3000)])]
)
class TestTiff:
    def test_what_is_not_broken(self, tmp_path, count):
        for name, write in TIFFS.items():
            data, array = write()
            (tmp_path / "a.tif").write_bytes(data)
            np.testing.assert_array_equal(read_tiff(tmp_path / "a.tif"), as_read(array), name)

    def test_cuts(self, tmp_path, count):
        rng = np.random.default_rng(0)
        path = tmp_path / "a.tif"
        whole = 0
        for number, write in enumerate(TIFFS.values()):
            data, array = write()
            share = count // len(TIFFS) + (number < count % len(TIFFS))
            for length in rng.integers(0, len(data), share):
                path.write_bytes(data[:length])
                found = outcome(lambda: read_tiff(path))
                if found is not None:
                    # Some files end with words that need not be there.
                    whole += 1
                    np.testing.assert_array_equal(found, as_read(array))
        assert whole <= count // 20

    def test_mutations(self, tmp_path, count):
        rng = np.random.default_rng(1)
        path = tmp_path / "a.tif"
        meant_otherwise = 0
        for number, (name, write) in enumerate(TIFFS.items()):
            data, array = write()
            path.write_bytes(data)
            words = words_of(path, len(data))
            expected = as_read(array)
            for _ in range(count // len(TIFFS) + (number < count % len(TIFFS))):
                mutant = mutated(data, rng, words)
                path.write_bytes(mutant)
                found = outcome(lambda: read_tiff(path))
                if found is None or (
                    found.shape == expected.shape and found.tobytes() == expected.tobytes()
                ):
                    continue
                # The file says another thing now, and nothing in it contradicts.
                meant_otherwise += 1
                others = by_others(path)
                assert others is not None, (name, mutant)
                np.testing.assert_array_equal(found, others, f"{name}")
        assert meant_otherwise <= count // 20


def zarr_array(zarr_format: int, **options: Any) -> Any:
    def write(path: Path) -> list[Any]:
        array = smooth(20, 24, 40, dtype="uint16") + 1
        zarr.create_array(path, data=array, chunks=(16,) * 3, zarr_format=zarr_format, **options)
        return [array]

    return write


def ome_zarr(zarr_format: int, **options: Any) -> Any:
    def write(path: Path) -> list[Any]:
        fine = smooth(20, 24, 40, dtype="uint16") + 1
        arrays = [fine, fine[::2, ::2, ::2]]
        group = zarr.open_group(path, mode="w", zarr_format=zarr_format)
        for number, array in enumerate(arrays):
            group.create_array(str(number), data=array, chunks=(16,) * 3, **options)
        axes = [{"name": axis, "type": "space", "unit": "nanometer"} for axis in "zyx"]
        scales = [{"type": "scale", "scale": [4 * f, 2 * f, 2 * f]} for f in (1, 2)]
        datasets = [
            {"path": str(number), "coordinateTransformations": [scale]}
            for number, scale in enumerate(scales)
        ]
        multiscales = [{"axes": axes, "datasets": datasets, "version": "0.4"}]
        old = {"multiscales": multiscales}
        group.attrs.update(old if zarr_format == 2 else {"ome": {"version": "0.5"} | old})
        return arrays

    return write


def codec(name: str) -> Any:
    return {"name": name, "configuration": {}}


ZARRS = {
    "2": zarr_array(2),
    "2, raw": zarr_array(2, compressors=None),
    "2, zlib": zarr_array(2, compressors={"id": "zlib", "level": 1}),
    "2, blosc": zarr_array(
        2, compressors={"id": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 1}
    ),
    "3": zarr_array(3),
    "3, raw": zarr_array(3, compressors=None),
    "3, gzip": zarr_array(3, compressors=codec("gzip")),
    "3, blosc": zarr_array(3, compressors=codec("blosc")),
    "3, shards": zarr_array(3, shards=(32,) * 3),
    "OME 0.4": ome_zarr(2),
    "OME 0.5": ome_zarr(3),
    "OME 0.5, gzip": ome_zarr(3, compressors=codec("gzip")),
}


def read_zarr(path: Path) -> list[tuple[Any, Any]]:
    """Return the mag and corner of each level, and all voxels, or their number if it is large."""
    image = zarrs.read(path)[0].with_mags(None)
    shapes = [level.source.shape for level in image.levels]
    if any(np.prod(list(map(float, shape))) > 1e7 for shape in shapes):
        return [((level.mag, level.corner), level.source.shape) for level in image.levels]
    return [((level.mag, level.corner), level.source[:, :, :, :]) for level in image.levels]


def zarr_says(path: Path) -> list[Any]:
    found = zarr.open(path, mode="r")
    arrays = [found] if isinstance(found, zarr.Array) else [found["0"], found["1"]]
    if any(np.prod(list(map(float, array.shape))) > 1e7 for array in arrays):
        return [(1, *array.shape[::-1]) for array in arrays]
    return [as_read(array[:]) for array in arrays]


def is_same(found: Any, expected: Any) -> bool:
    return all(
        np.shape(a) == np.shape(b) and np.asarray(a).tobytes() == np.asarray(b).tobytes()
        for (_, a), b in zip(found, expected, strict=True)
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "count", [FEW, pytest.param(MANY, marks=[pytest.mark.slow, pytest.mark.timeout(3000)])]
)
@pytest.mark.parametrize("change", ["cut", "mutated"])
def test_zarr(tmp_path, change, count):
    rng = np.random.default_rng(2)
    for number, (name, write) in enumerate(ZARRS.items()):
        path = tmp_path / f"{number}.zarr"
        expected = list(map(as_read, write(path)))
        facts = [fact for fact, _ in read_zarr(path)]
        assert is_same(read_zarr(path), expected), name
        files = [file for file in path.rglob("*") if file.is_file()]
        words = [file for file in files if file.name[0] == "." or file.suffix == ".json"]
        for _ in range(count // len(ZARRS) + (number < count % len(ZARRS))):
            file = rng.choice(np.array(words if rng.integers(2) else files))
            data = file.read_bytes()
            cut = data[: rng.integers(len(data))]
            mutant = cut if change == "cut" else mutated(data, rng, list(range(len(data))))
            file.write_bytes(mutant)
            found = outcome(lambda path=path: read_zarr(path))
            if found is not None:
                is_right = is_same(found, expected)
                # Voxels of many codecs, and the shape of an array alone, may be any.
                assert is_right or (change == "mutated" and is_same(found, zarr_says(path))), (
                    name, file.relative_to(path), mutant
                )  # fmt: skip
                if change == "cut" or len(expected) > 1:
                    assert [fact for fact, _ in found] == facts
            file.write_bytes(data)


def words_of(path: Path, size: int) -> list[int]:
    """Return the places in a TIFF file that are no voxels."""
    voxels = np.zeros(size, bool)
    with tifffile.TiffFile(path) as file:
        if len(file.pages) == 1:
            start = file.pages[0].dataoffsets[0]
            voxels[start : start + file.series[0].nbytes] = True
        for page in file.pages:
            for start, length in zip(page.dataoffsets, page.databytecounts, strict=True):
                voxels[start : start + length] = True
    return np.flatnonzero(~voxels).tolist()
