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
