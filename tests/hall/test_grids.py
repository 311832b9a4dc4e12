"""`wkdask.grids`: regions cut at cells, compared with NumPy's indexing of one big array."""

from __future__ import annotations

import math
from collections import Counter
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wkdask.geometry import BoundingBox, Vec3
from wkdask.grids import Overlap, Region, box_of, cut_axis, overlaps, region_of

EXTENT = (23, 19, 17)
"""Voxels of the big array; no multiple of any cell."""
BIG = np.arange(math.prod(EXTENT)).reshape(EXTENT, order="F")

edges = st.integers(1, 9)
cell_sizes = st.tuples(edges, edges, edges)


def axis_ranges(extent: int, start: int = 0) -> st.SearchStrategy[range]:
    ends = st.integers(start, extent)
    return st.builds(lambda a, b, step: range(min(a, b), max(a, b), step), ends, ends, edges)


regions = st.tuples(*(axis_ranges(extent) for extent in EXTENT))
signed_regions = st.tuples(*[axis_ranges(12, -12)] * 3)


def cell_of(part: Overlap, cell_size: Vec3) -> np.ndarray:
    """Return the voxels of a part's cell; those beyond the big array are missing."""
    return BIG[tuple(slice(c * e, (c + 1) * e) for c, e in zip(part.cell, cell_size, strict=True))]


class TestOverlaps:
    @given(regions, cell_sizes)
    @settings(deadline=None, max_examples=200)
    def test_gathering_the_parts_is_indexing(self, region: Region, cell_size: Vec3):
        wanted = BIG[np.ix_(*map(list, region))]
        found = np.full(wanted.shape, -1)
        for part in overlaps(region, cell_size):
            assert (found[part.target] == -1).all()  # no voxel twice
            found[part.target] = cell_of(part, cell_size)[part.source_slices]
        np.testing.assert_array_equal(found, wanted)

    @given(signed_regions, cell_sizes)
    @settings(deadline=None)
    def test_parts_hold_the_positions_of_the_region(self, region: Region, cell_size: Vec3):
        # Positions one by one, below zero too: cells are floors, not truncations.
        found: Counter[tuple[Vec3, Vec3]] = Counter()
        for part in overlaps(region, cell_size):
            inside = product(*part.source)
            places = product(*(range(s.start, s.stop) for s in part.target))
            for voxel, place in zip(inside, places, strict=True):
                assert all(0 <= v < e for v, e in zip(voxel, cell_size, strict=True))
                steps = zip(part.cell, cell_size, voxel, strict=True)
                found[tuple(c * e + v for c, e, v in steps), place] += 1
        places = product(*(range(len(axis)) for axis in region))
        assert found == Counter(zip(product(*region), places, strict=True))

    @given(regions, cell_sizes)
    @settings(deadline=None)
    def test_each_cell_comes_once_in_the_order_of_files_and_blocks(
        self, region: Region, cell_size: Vec3
    ):
        cells = [part.cell for part in overlaps(region, cell_size)]
        assert len(set(cells)) == len(cells)
        assert cells == sorted(cells, key=lambda cell: cell[::-1])

    @pytest.mark.parametrize(
        ("region", "cell_size", "cells"),
        [
            (((0, 8, 1),) * 3, 8, 1),  # exactly one cell
            (((0, 9, 1), (0, 8, 1), (0, 8, 1)), 8, 2),
            (((7, 9, 1),) * 3, 8, 8),  # a corner where eight meet
            (((0, 64, 16), (0, 1, 1), (0, 1, 1)), 8, 4),  # a step skips whole cells
            (((3, 3, 1), (0, 8, 1), (0, 8, 1)), 8, 0),  # an empty axis
            (((5, 100, 1000), (0, 1, 1), (0, 1, 1)), 8, 1),
        ],
    )
    def test_only_cells_with_wanted_voxels(self, region, cell_size, cells):
        ranges = tuple(range(*axis) for axis in region)
        assert len(list(overlaps(ranges, (cell_size,) * 3))) == cells

    def test_step_across_a_border(self):
        parts = list(overlaps((range(1, 12, 3), range(1), range(1)), (8, 8, 8)))
        assert [(part.cell[0], list(part.source[0]), part.target[0]) for part in parts] == [
            (0, [1, 4, 7], slice(0, 3)),
            (1, [2], slice(3, 4)),
        ]
        assert parts[0].source_slices[0] == slice(1, 8, 3)

    def test_far_away(self):
        # Positions beyond 64 bits do not wrap.
        far = 2**70
        (part,) = overlaps((range(far + 1, far + 3), range(1), range(1)), (1024, 1, 1))
        assert (part.cell[0], part.source[0]) == (2**60, range(1, 3))


class TestRegions:
    def test_box_and_region(self):
        box = BoundingBox((3, 4, 5), (2, 1, 7))
        assert region_of(box) == (range(3, 5), range(4, 5), range(5, 12))
        assert box_of(region_of(box)) == box

    def test_box_of_steps_ends_at_the_last_voxel(self):
        assert box_of((range(3, 10, 4), range(1), range(0, 9, 2))) == BoundingBox(
            (3, 0, 0), (5, 1, 9)
        )


class TestCutAxis:
    @pytest.mark.parametrize(
        ("start", "stop", "edge", "expected"),
        [
            (10, 110, 64, (54, 46)),
            (0, 128, 64, (64, 64)),  # both ends on borders: no piece of length 0
            (64, 65, 64, (1,)),
            (63, 65, 64, (1, 1)),
            (5, 9, 64, (4,)),
            (-5, 5, 4, (1, 4, 4, 1)),
            (0, 3, 1, (1, 1, 1)),
        ],
    )
    def test_examples(self, start, stop, edge, expected):
        assert cut_axis(start, stop, edge) == expected

    @given(st.integers(-200, 200), st.integers(1, 200), st.integers(1, 70))
    @settings(deadline=None)
    def test_pieces_lie_between_multiples(self, start, length, edge):
        position = start
        for index, piece in enumerate(cut_axis(start, start + length, edge)):
            assert 1 <= piece <= edge
            assert position % edge == 0 or index == 0
            assert position // edge == (position + piece - 1) // edge  # one cell only
            position += piece
        assert position == start + length
