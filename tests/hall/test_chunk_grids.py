"""`wkdask.grids`: the chunks of a box, when two would collide, and pairs of two boxes."""

from __future__ import annotations

from fractions import Fraction
from itertools import product

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from wkdask.errors import AlignmentError, ArgumentError
from wkdask.geometry import BoundingBox, Vec3
from wkdask.grids import ChunkGrid, check_apart, chunk_grid, overlaps, paired_grids, region_of
from wkdask.storage.header import BLOCK_TYPES, VolumeHeader

starts = st.integers(-15, 15)
lengths = st.integers(1, 12)
corners = st.tuples(starts, starts, starts)
sizes = st.tuples(lengths, lengths, lengths)
boxes = st.builds(BoundingBox, corners, sizes)
chunk_sizes = st.tuples(*[st.integers(1, 9)] * 3)


def line(start: int, stop: int) -> BoundingBox:
    """Return a box of one row along x."""
    return BoundingBox((start, 0, 0), (stop - start, 1, 1))


def cells_of(box: BoundingBox, edge: int) -> set[Vec3]:
    """Return the cells of `edge` voxels that a box touches."""
    return {part.cell for part in overlaps(region_of(box), (edge,) * 3)}


class TestChunkGrid:
    def test_example_of_the_original(self):
        grid = chunk_grid(BoundingBox((10, 10, 10), (100, 100, 100)), (64, 64, 64))
        assert (grid.shape, len(grid)) == ((2, 2, 2), 8)
        assert grid.chunks == ((54, 46),) * 3
        assert grid.chunk_box((0, 1, 0)) == BoundingBox((10, 64, 10), (54, 46, 54))

    @pytest.mark.parametrize(
        ("box", "chunk_size", "shape"),
        [
            (BoundingBox((0, 0, 0), (64, 64, 64)), (64, 64, 64), (1, 1, 1)),
            (BoundingBox((0, 0, 0), (65, 64, 63)), (64, 64, 64), (2, 1, 1)),
            (BoundingBox((63, 0, 0), (2, 1, 1)), (64, 64, 64), (2, 1, 1)),
            (BoundingBox((5, 5, 5), (100, 100, 100)), (100, 100, 100), (2, 2, 2)),
            (BoundingBox((5, 5, 5), (10, 10, 10)), (1000, 1000, 1000), (1, 1, 1)),
            (BoundingBox((0, 0, 0), (3, 2, 1)), (1, 1, 1), (3, 2, 1)),
        ],
    )
    def test_counts(self, box, chunk_size, shape):
        grid = chunk_grid(box, chunk_size)
        assert grid.shape == shape
        assert len(grid) == len(list(grid)) == shape[0] * shape[1] * shape[2]

    def test_counting_has_x_outermost_and_z_fastest(self):
        grid = chunk_grid(BoundingBox((0, 0, 0), (2, 3, 4)), (1, 1, 1))
        positions = [box.topleft for box in grid]
        assert positions == list(product(range(2), range(3), range(4)))
        assert [grid.index(at) for at in positions] == list(range(24))
        assert [grid.index(at) for at in ((0, 0, 1), (0, 1, 0), (1, 0, 0))] == [1, 4, 12]

    def test_a_million_chunks_cost_nothing_to_count(self):
        grid = chunk_grid(BoundingBox((7, 7, 7), (1024 * 10**4,) * 3), (1024,) * 3)
        assert len(grid) == (10**4 + 1) ** 3
        assert grid.chunk_box((10**4, 0, 0)).topleft == (1024 * 10**4, 7, 7)

    @given(boxes, chunk_sizes)
    @settings(deadline=None)
    def test_chunks_are_those_of_the_box(self, box, chunk_size):
        # The same cut by another route: `BoundingBox.chunk` with borders on absolute multiples.
        grid = chunk_grid(box, chunk_size)
        assert list(grid) == list(box.chunk(chunk_size, chunk_size))
        assert [grid.index(at) for at in product(*map(range, grid.shape))] == list(range(len(grid)))

    @given(boxes, chunk_sizes)
    @settings(deadline=None)
    def test_lengths_are_those_of_the_boxes(self, box, chunk_size):
        grid = chunk_grid(box, chunk_size)
        assert tuple(map(len, grid.chunks)) == grid.shape
        for at, chunk in zip(product(*map(range, grid.shape)), grid, strict=True):
            assert chunk.size == tuple(n[i] for n, i in zip(grid.chunks, at, strict=True))

    @pytest.mark.parametrize(
        ("size", "chunk_size"),
        [
            ((0, 5, 5), (1, 1, 1)),
            ((5, 5, 5), (0, 1, 1)),
            ((5, 5, 5), (1, -1, 1)),
            ((5, 5, 5), (1.0, 1, 1)),
            ((5, 5, 5), (1, 1)),
        ],
    )
    def test_refusals(self, size, chunk_size):
        with pytest.raises(ArgumentError):
            chunk_grid(BoundingBox((0, 0, 0), size), chunk_size)


class TestCheckApart:
    """Blocks of 4 voxels, files of 8: compressed chunks need 8, raw ones 4."""

    @pytest.mark.parametrize(
        ("box", "edge", "block_type", "fine"),
        [
            (line(0, 64), 8, "lz4", True),
            (line(0, 64), 24, "lz4hc", True),
            (line(3, 61), 8, "lz4", True),  # clipped chunks share no file
            (line(0, 64), 4, "lz4", False),  # two chunks in one file
            (line(0, 64), 12, "lz4", False),
            (line(0, 64), 4, "raw", True),  # ... but not in one block
            (line(0, 64), 6, "raw", False),
            (line(0, 64), 64, "lz4", True),
            (line(0, 64), 63, "lz4", False),
            (line(1, 6), 7, "lz4", True),  # a single chunk collides with nothing
            (line(1, 8), 7, "lz4", False),
            (line(100, 110), 13, "lz4", True),  # [100, 104) and [104, 110) meet between files
            (line(90, 110), 13, "lz4", False),  # ... and [90, 91), [91, 104) do not
        ],
    )
    def test_examples(self, box, edge, block_type, fine):
        header = VolumeHeader("uint8", block_edge=4, blocks_per_file_edge=2, block_type=block_type)
        grid = chunk_grid(box, (edge, 8, 8))
        if fine:
            check_apart(grid, header.write_size, header.write_unit)
        else:
            with pytest.raises(AlignmentError):
                check_apart(grid, header.write_size, header.write_unit)

    @pytest.mark.parametrize(
        ("edge", "block_type", "unit", "advice"),
        [
            (100, "lz4", "file", "(64, 64, 64) or (128, 64, 64)"),
            (100, "raw", "block", "(96, 64, 64) or (128, 64, 64)"),
            (10, "lz4", "file", "(64, 64, 64)"),  # nothing below one file
        ],
    )
    def test_the_error_names_sizes_that_work(self, edge, block_type, unit, advice):
        header = VolumeHeader("uint8", blocks_per_file_edge=2, block_type=block_type)
        grid = chunk_grid(line(0, 1000), (edge, 64, 64))
        with pytest.raises(AlignmentError) as caught:
            check_apart(grid, header.write_size, header.write_unit)
        text = str(caught.value)
        assert f"share a {unit}" in text
        assert f"({edge}, 64, 64)" in text
        assert f"Use {advice}, or a view with read_only=True" in text

    @given(boxes, chunk_sizes, st.sampled_from(BLOCK_TYPES))
    @settings(deadline=None)
    def test_refused_exactly_if_two_chunks_share_a_file_or_block(self, box, size, block_type):
        header = VolumeHeader("uint8", block_edge=2, blocks_per_file_edge=2, block_type=block_type)
        grid = chunk_grid(box, size)
        touched = [cells_of(chunk, header.write_size[0]) for chunk in grid]
        shared = sum(map(len, touched)) != len(set().union(*touched))
        try:
            check_apart(grid, header.write_size, header.write_unit)
        except AlignmentError:
            assert shared
        else:
            assert not shared


class TestPairedGrids:
    @pytest.mark.parametrize(
        ("source", "target", "source_size", "target_size", "expected"),
        [
            # 96/48 with chunks 64/32: a ragged last chunk is fine if the ratio holds
            ((0, 96), (0, 48), 64, 32, [(64, 32), (32, 16)]),
            ((0, 96), (0, 48), None, 32, [(64, 32), (32, 16)]),
            ((0, 96), (0, 48), None, None, [(64, 32), (32, 16)]),
            ((0, 128), (0, 128), 64, 64, [(64, 64), (64, 64)]),
            ((32, 160), (16, 80), 64, 32, [(32, 16), (64, 32), (32, 16)]),
            ((64, 192), (0, 128), 64, 64, [(64, 64), (64, 64)]),  # whole chunks further
            ((0, 96), (0, 32), 96, 32, [(96, 32)]),
            ((0, 32), (0, 128), 16, 64, [(16, 64), (16, 64)]),  # upsampling
            ((0, 96), (0, 64), 48, 32, [(48, 32), (48, 32)]),  # a ratio of 3/2
        ],
    )
    def test_pairs(self, source, target, source_size, target_size, expected):
        one, other = paired_grids(
            line(*source),
            line(*target),
            source_size and (source_size, 32, 32),
            target_size and (target_size, 32, 32),
            file_size=(32, 32, 32),
        )
        assert [(a.size[0], b.size[0]) for a, b in zip(one, other, strict=True)] == expected

    def test_each_axis_has_its_own_ratio(self):
        source, target = BoundingBox((0,) * 3, (128, 64, 64)), BoundingBox((0,) * 3, (64, 64, 32))
        one, other = paired_grids(source, target, None, None, (32, 32, 32))
        assert (one.chunk_size, other.chunk_size) == ((64, 32, 64), (32, 32, 32))

    @pytest.mark.parametrize(
        ("source", "target", "source_size", "target_size", "error", "text"),
        [
            # the original paired what does not correspond and never processed [128, 160)
            ((32, 160), (0, 128), 64, 64, AlignmentError, "do not correspond"),
            ((32, 160), (0, 128), None, 64, AlignmentError, "axis x"),
            ((0, 128), (0, 64), 64, 64, ArgumentError, "another ratio"),
            ((0, 128), (0, 64), 65, 32, ArgumentError, "another ratio"),
            ((0, 128), (0, 0), 64, 32, ArgumentError, "empty"),
            ((0, 0), (0, 128), 64, 32, ArgumentError, "empty"),
            ((0, 128), (0, 128), 48, 48, AlignmentError, "(32, 32, 32) or (64, 32, 32)"),
            ((0, 128), (0, 128), 16, 16, AlignmentError, "multiple of the target's file edge 32"),
            ((0, 128), (0, 128), 0, 32, ArgumentError, "source_chunk_size"),
            ((0, 128), (0, 128), 32, -32, ArgumentError, "target_chunk_size"),
            ((0, 100), (0, 33), None, 32, ArgumentError, "no whole source chunk"),
            ((1, 97), (0, 48), 64, 32, AlignmentError, "do not correspond"),
        ],
    )
    def test_refusals(self, source, target, source_size, target_size, error, text):
        with pytest.raises(error) as caught:
            paired_grids(
                line(*source),
                line(*target),
                None if source_size is None else (source_size, 32, 32),
                None if target_size is None else (target_size, 32, 32),
                file_size=(32, 32, 32),
            )
        assert text in str(caught.value)

    @given(st.data())
    @settings(deadline=None, max_examples=150)
    def test_what_is_accepted_corresponds_and_partitions(self, data):
        file_edge = data.draw(st.sampled_from([1, 2, 4]), "file_edge")
        target = data.draw(boxes, "target")
        source = data.draw(st.one_of(related(target), boxes), "source")
        target_size = data.draw(st.none() | multiples(file_edge), "target_size")
        given_size = data.draw(st.none() | chunk_sizes, "source_size")
        try:
            grids = paired_grids(source, target, given_size, target_size, (file_edge,) * 3)
        except ArgumentError:
            assume(False)
        assert grids[1].chunk_size == (target_size or (file_edge,) * 3)
        assert given_size in (None, grids[0].chunk_size)
        assert_correspond(*grids)
        touched = [cells_of(chunk, file_edge) for chunk in grids[1]]
        assert sum(map(len, touched)) == len(set().union(*touched))

    @given(boxes, st.tuples(*[st.integers(1, 4)] * 3), st.sampled_from([1, 2, 4, 8]))
    @settings(deadline=None)
    def test_the_same_place_in_a_finer_mag_is_always_accepted(self, target, factors, file_edge):
        grids = paired_grids(target.scaled_by(factors), target, None, None, (file_edge,) * 3)
        assert_correspond(*grids)
        for source, chunk in zip(*grids, strict=True):
            assert source == chunk.scaled_by(factors)

    @given(boxes, boxes, st.integers(1, 4).map(lambda n: (2 * n,) * 3))
    @settings(deadline=None)
    def test_nothing_that_corresponds_is_refused(self, source, target, target_size):
        ratios = [Fraction(a, b) for a, b in zip(source.size, target.size, strict=True)]
        lengths = [ratio * n for ratio, n in zip(ratios, target_size, strict=True)]
        assume(all(length.denominator == 1 for length in lengths))
        grids = (
            ChunkGrid(source, tuple(map(int, lengths))),  # type: ignore[arg-type]
            ChunkGrid(target, target_size),
        )
        try:
            assert_correspond(*grids)
        except AssertionError:
            with pytest.raises(AlignmentError):
                paired_grids(source, target, None, target_size, (2, 2, 2))
        else:
            assert paired_grids(source, target, None, target_size, (2, 2, 2)) == grids


def multiples(edge: int) -> st.SearchStrategy[Vec3]:
    return st.tuples(*[st.integers(1, 6).map(lambda n: n * edge)] * 3)


@st.composite
def related(draw: st.DrawFn, target: BoundingBox) -> BoundingBox:
    """Draw a source that lies where the target lies, sometimes a little off."""
    source = target.scaled_by(draw(st.tuples(*[st.integers(1, 3)] * 3)))
    return source.moved_by(draw(st.just((0, 0, 0)) | corners))


def assert_correspond(source: ChunkGrid, target: ChunkGrid) -> None:
    """Assert that chunks are the same parts of both boxes, one by one, and partition them."""
    ratios = [Fraction(a, b) for a, b in zip(source.box.size, target.box.size, strict=True)]
    assert len(source) == len(target)
    for theirs, ours in zip(source, target, strict=True):
        for axis, ratio in enumerate(ratios):
            begin = ours.topleft[axis] - target.box.topleft[axis]
            assert theirs.topleft[axis] - source.box.topleft[axis] == begin * ratio
            assert theirs.size[axis] == ours.size[axis] * ratio
    for grid in (source, target):
        assert sum(chunk.volume for chunk in grid) == grid.box.volume
        assert all(grid.box.contains_bbox(chunk) for chunk in grid)
        assert len({chunk.topleft for chunk in grid}) == len(grid)
