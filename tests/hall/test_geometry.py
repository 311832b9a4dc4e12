"""`wkdask.geometry`: tables of examples, properties, and webknossos as the oracle of boxes."""

from __future__ import annotations

import itertools
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wkdask.errors import ArgumentError, BoundsError, WkdaskError
from wkdask.geometry import BoundingBox, Mag, Vec3, per_axis, positive3, vec3

whole = st.integers(-100, 100)
lengths = st.integers(0, 80)
factors = st.tuples(*[st.integers(1, 9)] * 3)
corners = st.tuples(whole, whole, whole)
boxes = st.builds(BoundingBox, corners, st.tuples(lengths, lengths, lengths))
full_boxes = boxes.filter(lambda box: not box.is_empty)
mags = factors.map(Mag)
# webknossos knows no other factors than powers of two.
their_mags = st.tuples(*[st.sampled_from([1, 2, 4, 8])] * 3).map(Mag)

NOT_THREE_WHOLE_NUMBERS = [
    (1.0, 2, 3),  # a float, even a whole one: wkdask does not guess
    (1.5, 2, 3),
    np.array([1.0, 2.0, 3.0]),
    (1, 2),
    (1, 2, 3, 4),
    (),
    "123",
    ("1", "2", "3"),
    (None, 1, 2),
    (1j, 1, 2),
    None,
    1.0,
    ((1,), 2, 3),
]


def voxels(box: BoundingBox) -> set[Vec3]:
    """Return the voxels of a box one by one: the oracle of the arithmetic."""
    axes = (range(a, a + s) for a, s in zip(box.topleft, box.size, strict=True))
    return set(itertools.product(*axes))  # type: ignore[arg-type]


class TestVectors:
    @pytest.mark.parametrize(
        "value",
        [(1, 2, 3), [1, 2, 3], np.array([1, 2, 3]), np.uint8([1, 2, 3]), iter((1, 2, 3))],
        ids=["tuple", "list", "array", "uint8", "iterator"],
    )
    def test_three_whole_numbers_become_python_ints(self, value):
        numbers = vec3(value, "offset")
        assert numbers == (1, 2, 3)
        assert {type(number) for number in numbers} == {int}

    def test_bools_become_ints(self):
        # A bool is a whole number for Python, but it must not be printed as "True" in a path.
        assert str(vec3((True, False, 2), "offset")) == "(1, 0, 2)"

    @pytest.mark.parametrize("value", NOT_THREE_WHOLE_NUMBERS, ids=repr)
    def test_everything_else_is_refused(self, value):
        with pytest.raises(ArgumentError, match=r"offset is .*three whole numbers"):
            vec3(value, "offset")

    def test_one_number_counts_for_every_axis(self):
        assert per_axis(np.int64(7), "size") == (7, 7, 7)
        assert per_axis((1, 2, 3), "size") == (1, 2, 3)

    @pytest.mark.parametrize("value", [2.0, None, "2", (1, 2)])
    def test_what_is_neither_one_nor_three_numbers(self, value):
        with pytest.raises(ArgumentError, match="size"):
            per_axis(value, "size")

    @pytest.mark.parametrize("value", [(0, 1, 1), (1, 1, -1)])
    def test_positive(self, value):
        assert positive3((1, 2, 3), "chunk_size") == (1, 2, 3)
        with pytest.raises(ArgumentError, match=r"chunk_size .* at least 1"):
            positive3(value, "chunk_size")


class TestMag:
    @pytest.mark.parametrize(
        ("value", "expected", "text"),
        [
            (1, (1, 1, 1), "1"),
            ("1", (1, 1, 1), "1"),
            ("2-2-1", (2, 2, 1), "2-2-1"),
            ("2-2-2", (2, 2, 2), "2"),  # three equal factors are written as one
            ("10-20-3", (10, 20, 3), "10-20-3"),
            ((4, 4, 1), (4, 4, 1), "4-4-1"),
            ([4, 4, 4], (4, 4, 4), "4"),
            (np.array([2, 4, 8]), (2, 4, 8), "2-4-8"),
            (np.int64(3), (3, 3, 3), "3"),
            (Mag("8-8-2"), (8, 8, 2), "8-8-2"),
            (True, (1, 1, 1), "1"),
        ],
    )
    def test_ways_to_write_one(self, value, expected, text):
        mag = Mag(value)
        assert (mag.factors, str(mag), repr(mag)) == (expected, text, f"Mag({text!r})")
        assert {type(factor) for factor in mag} == {int}
        assert tuple(mag) == expected

    @pytest.mark.parametrize(
        "value",
        [
            *NOT_THREE_WHOLE_NUMBERS[:5],
            (),
            None,
            0,
            -1,
            (2, 2, 0),
            (2, -2, 1),
            2.0,
            "",
            "-",
            "-1",
            "0",
            "2-2",
            "2-2-",
            "2-2-1-1",
            "2-2-0",
            "2_2_1",
            "1_0",  # Python's int() would read it as 10
            "٢",  # ... and the Arabic digit as 2
            " 2",
            "+2",
            "2x2x1",
            "2.0",
            "one",
            {},
        ],
        ids=repr,
    )
    def test_bad_values(self, value):
        with pytest.raises(ArgumentError, match="mag") as caught:
            Mag(value)
        assert isinstance(caught.value, WkdaskError)

    def test_order_is_from_fine_to_coarse(self):
        names = ["1", "2-1-1", "2-2-1", "2", "1-1-4", "4-2-1", "4-4-1", "4", "3-3-8", "16"]
        assert [str(mag) for mag in sorted(map(Mag, reversed(names)))] == names

    def test_comparison(self):
        assert Mag(1) < Mag("2-2-1") < Mag(2)
        assert Mag(2) > Mag("2-2-1")
        assert not Mag(2) < Mag("2-2-2")
        assert max(Mag("2-2-1"), Mag(1)) == Mag("2-2-1")
        assert len({Mag(2), Mag("2"), Mag((2, 2, 2))}) == 1
        assert Mag(2) != 2

    def test_pickle(self):
        assert pickle.loads(pickle.dumps(Mag("2-2-1"))) == Mag("2-2-1")

    @given(mags)
    @settings(deadline=None)
    def test_text_round_trip(self, mag):
        assert Mag(str(mag)) == Mag(tuple(mag)) == Mag(mag) == mag

    @given(mags, mags)
    @settings(deadline=None)
    def test_order_is_total(self, one, other):
        assert (one < other) + (other < one) + (one == other) == 1
        if one < other:
            assert max(one) <= max(other)

    @given(mags, factors)
    @settings(deadline=None)
    def test_factors_from(self, finer, scale):
        coarser = Mag(a * b for a, b in zip(finer, scale, strict=True))
        assert coarser.factors_from(finer) == scale

    @pytest.mark.parametrize(
        ("coarser", "finer"), [("3", "2"), ("1", "2"), ("4-4-1", "2"), ("6-6-6", "4-2-2")]
    )
    def test_factors_that_are_not_whole(self, coarser, finer):
        with pytest.raises(ArgumentError, match=f"mag {coarser[0]}.* from mag {finer}"):
            Mag(coarser).factors_from(Mag(finer))


class TestBox:
    @pytest.mark.parametrize("value", NOT_THREE_WHOLE_NUMBERS, ids=repr)
    def test_corners_and_sizes_that_are_no_whole_numbers(self, value):
        with pytest.raises(ArgumentError, match="topleft"):
            BoundingBox(value, (1, 1, 1))
        with pytest.raises(ArgumentError, match="size"):
            BoundingBox((1, 1, 1), value)

    @pytest.mark.parametrize("size", [(-1, 1, 1), (1, 1, -5), (0, -1, 0)])
    def test_negative_sizes(self, size):
        with pytest.raises(ArgumentError, match="negative"):
            BoundingBox((0, 0, 0), size)

    def test_facts(self):
        box = BoundingBox(np.array([10, -5, 0]), [100, 5, 2])
        assert box == BoundingBox((10, -5, 0), (100, 5, 2))
        assert (box.topleft, box.size, box.bottomright) == ((10, -5, 0), (100, 5, 2), (110, 0, 2))
        assert {type(n) for n in (*box.topleft, *box.size, *box.bottomright)} == {int}
        assert (box.volume, box.is_empty) == (1000, False)
        assert str(box) == "x [10, 110), y [-5, 0), z [0, 2)"
        assert pickle.loads(pickle.dumps(box)) == box

    def test_facts_beyond_64_bits(self):
        # 10^15 voxels per axis and more: Python's ints do not wrap.
        box = BoundingBox((2**62,) * 3, (2**62,) * 3)
        assert box.bottomright == (2**63,) * 3
        assert box.volume == 2**186

    def test_is_frozen(self):
        with pytest.raises(AttributeError):
            BoundingBox((0, 0, 0), (1, 1, 1)).size = (2, 2, 2)  # type: ignore[misc]

    @pytest.mark.parametrize("size", [(0, 1, 1), (5, 5, 0), (0, 0, 0)])
    def test_empty(self, size):
        box = BoundingBox((1, 2, 3), size)
        assert box.is_empty
        assert box.volume == 0

    def test_moved_and_scaled(self):
        box = BoundingBox((1, 2, 3), (4, 5, 6))
        assert box.moved_by((-1, 0, 10)) == BoundingBox((0, 2, 13), (4, 5, 6))
        assert box.scaled_by((2, 3, 1)) == BoundingBox((2, 6, 3), (8, 15, 6))
        with pytest.raises(ArgumentError, match="offset"):
            box.moved_by((0.5, 0, 0))

    @given(boxes)
    @settings(deadline=None)
    def test_from_corners_round_trip(self, box):
        assert BoundingBox.from_corners(box.topleft, box.bottomright) == box

    def test_corners_that_cross(self):
        assert BoundingBox.from_corners((5, 5, 5), (4, 6, 5)) == BoundingBox((5, 5, 5), (0, 1, 0))


OUTER = BoundingBox((10, 10, 10), (10, 10, 10))


class TestTwoBoxes:
    @pytest.mark.parametrize(
        ("inner", "expected"),
        [
            (OUTER, True),
            (BoundingBox((12, 12, 12), (3, 3, 3)), True),
            (BoundingBox((19, 19, 19), (1, 1, 1)), True),  # the last voxel
            (BoundingBox((20, 19, 19), (1, 1, 1)), False),  # bottomright is not inside
            (BoundingBox((9, 10, 10), (5, 5, 5)), False),
            (BoundingBox((10, 10, 10), (10, 10, 11)), False),
            (BoundingBox((0, 0, 0), (50, 50, 50)), False),
            (BoundingBox((12, 12, 12), (0, 0, 0)), True),
        ],
    )
    def test_contains(self, inner, expected):
        assert OUTER.contains_bbox(inner) is expected

    @pytest.mark.parametrize(
        "other",
        [
            BoundingBox((20, 10, 10), (5, 5, 5)),  # they touch
            BoundingBox((0, 0, 0), (10, 50, 50)),
            BoundingBox((40, 40, 40), (1, 1, 1)),
            BoundingBox((12, 12, 12), (1, 0, 1)),
        ],
    )
    def test_nothing_in_common(self, other):
        for one, two in ((OUTER, other), (other, OUTER)):
            with pytest.raises(BoundsError, match="no voxel in common") as caught:
                one.intersected_with(two)
            assert isinstance(caught.value, AssertionError)
            assert one.intersected_with(two, dont_assert=True).is_empty

    @given(boxes, boxes)
    @settings(deadline=None)
    def test_as_sets_of_voxels(self, one, other):
        small_one = BoundingBox(one.topleft, (n % 6 for n in one.size))
        near = (a + b % 5 - 2 for a, b in zip(one.topleft, other.topleft, strict=True))
        small_other = BoundingBox(near, (n % 6 for n in other.size))
        first, second = voxels(small_one), voxels(small_other)
        both = small_one.intersected_with(small_other, dont_assert=True)
        assert voxels(both) == first & second
        assert small_one.contains_bbox(small_other) is (second <= first)
        assert first | second <= voxels(small_one.extended_by(small_other))

    @given(boxes, boxes)
    @settings(deadline=None)
    def test_extended_is_the_smallest(self, one, other):
        around = one.extended_by(other)
        assert around == other.extended_by(one) or one.is_empty or other.is_empty
        assert around.contains_bbox(one)
        assert around.contains_bbox(other)
        if not (one.is_empty or other.is_empty):
            for axis in range(3):
                assert around.topleft[axis] in (one.topleft[axis], other.topleft[axis])
                assert around.bottomright[axis] in (one.bottomright[axis], other.bottomright[axis])

    def test_an_empty_box_extends_nothing(self):
        far = BoundingBox((1000, 0, 0), (0, 5, 5))
        assert OUTER.extended_by(far) == far.extended_by(OUTER) == OUTER


class TestMagsOfBoxes:
    @pytest.mark.parametrize(
        ("mag", "ceil", "topleft", "size"),
        [
            (1, True, (3, 4, 5), (10, 10, 10)),
            (1, False, (3, 4, 5), (10, 10, 10)),
            (2, True, (2, 4, 4), (12, 10, 12)),
            (2, False, (4, 4, 6), (8, 10, 8)),
            ("4-4-1", True, (0, 4, 5), (16, 12, 10)),
            ((4, 4, 1), False, (4, 4, 5), (8, 8, 10)),
            (Mag(16), True, (0, 0, 0), (16, 16, 16)),
            (16, False, (16, 16, 16), (0, 0, 0)),  # no whole voxel of mag 16 lies inside
        ],
    )
    def test_align(self, mag, ceil, topleft, size):
        box = BoundingBox((3, 4, 5), (10, 10, 10))
        assert box.align_with_mag(mag, ceil=ceil) == BoundingBox(topleft, size)

    def test_align_goes_inwards_unless_asked(self):
        box = BoundingBox((1, 1, 1), (6, 6, 6))
        assert box.align_with_mag(2) == box.align_with_mag(2, ceil=False)
        assert box.align_with_mag(2) == BoundingBox((2, 2, 2), (4, 4, 4))

    @given(full_boxes, mags)
    @settings(deadline=None)
    def test_ceil_contains_and_floor_is_contained(self, box, mag):
        outer, inner = box.align_with_mag(mag, ceil=True), box.align_with_mag(mag, ceil=False)
        assert outer.contains_bbox(box)
        assert box.contains_bbox(inner)
        assert inner == inner.align_with_mag(mag) or inner.is_empty
        for axis, factor in enumerate(mag):
            assert outer.topleft[axis] % factor == outer.bottomright[axis] % factor == 0
            assert inner.topleft[axis] % factor == 0
            # and neither goes further than it must
            assert outer.size[axis] < box.size[axis] + 2 * factor
            assert box.topleft[axis] - outer.topleft[axis] < factor
            assert outer.bottomright[axis] - box.bottomright[axis] < factor
            assert inner.size[axis] >= box.size[axis] - 2 * (factor - 1)

    def test_in_mag(self):
        box = BoundingBox((4, -8, 3), (8, 4, 5))
        assert box.in_mag("4-4-1") == BoundingBox((1, -2, 3), (2, 1, 5))
        assert box.in_mag(1) == box

    @given(boxes, factors)
    @settings(deadline=None)
    def test_in_mag_undoes_scaled_by(self, box, scale):
        assert box.scaled_by(scale).in_mag(scale) == box

    @pytest.mark.parametrize(
        ("topleft", "size", "mag"),
        [
            ((1, 0, 0), (2, 2, 2), 2),
            ((0, 0, 0), (2, 3, 2), 2),
            ((1, 1, 1), (1, 1, 1), 2),  # each number would divide if rounded: still refused
            ((0, 0, 1), (4, 4, 4), "4-4-2"),
            ((0, 0, 3), (4, 4, 0), 4),
        ],
    )
    def test_in_mag_refuses_what_does_not_divide(self, topleft, size, mag):
        with pytest.raises(ArgumentError, match="align_with_mag"):
            BoundingBox(topleft, size).in_mag(mag)

    @pytest.mark.parametrize("mag", [0, "2-2", 1.5])
    def test_bad_mags(self, mag):
        for method in (OUTER.align_with_mag, OUTER.in_mag):
            with pytest.raises(ArgumentError, match="mag"):
                method(mag)


class TestChunk:
    def test_example_of_the_original(self):
        box = BoundingBox((10, 10, 10), (100, 100, 100))
        chunks = list(box.chunk((64, 64, 64), (64, 64, 64)))
        assert len(chunks) == 8
        assert (chunks[0].topleft, chunks[0].bottomright) == ((10, 10, 10), (64, 64, 64))
        assert (chunks[-1].topleft, chunks[-1].bottomright) == ((64, 64, 64), (110, 110, 110))

    def test_without_alignment_chunks_begin_at_the_corner(self):
        chunks = list(BoundingBox((10, 0, 0), (100, 1, 1)).chunk((64, 1, 1)))
        assert [(chunk.topleft[0], chunk.size[0]) for chunk in chunks] == [(10, 64), (74, 36)]

    def test_alignment_smaller_than_the_chunk(self):
        # Chunks of 64 that begin at a multiple of 16: 64 voxels between borders, not 48.
        chunks = list(BoundingBox((40, 0, 0), (100, 1, 1)).chunk((64, 1, 1), (16, 1, 1)))
        assert [(chunk.topleft[0], chunk.bottomright[0]) for chunk in chunks] == [
            (40, 96),
            (96, 140),
        ]

    def test_order_is_x_outermost_and_z_fastest(self):
        chunks = BoundingBox((0, 0, 0), (2, 2, 2)).chunk((1, 1, 1))
        assert [chunk.topleft for chunk in chunks] == list(itertools.product(range(2), repeat=3))

    @pytest.mark.parametrize("size", [(0, 5, 5), (0, 0, 0), (5, 5, 0)])
    @pytest.mark.parametrize("aligned", [None, (2, 2, 2)])
    def test_an_empty_box_has_no_chunks(self, size, aligned):
        assert list(BoundingBox((1, 1, 1), size).chunk((2, 2, 2), aligned)) == []

    @pytest.mark.parametrize(
        ("chunk_size", "alignments"),
        [
            ((0, 1, 1), None),
            ((-1, 1, 1), None),
            ((1.0, 1, 1), None),
            ((1, 1), None),
            (64, None),
            ((64, 64, 64), (0, 64, 64)),
            ((64, 64, 64), (-64, 64, 64)),
            ((64, 64, 64), (64.0, 64, 64)),
            ((64, 64, 64), (48, 64, 64)),  # does not divide the chunk
            ((64, 64, 64), (64, 64, 128)),
        ],
    )
    def test_refusals_come_before_the_first_chunk(self, chunk_size, alignments):
        # The call itself raises: a caller that never iterates still learns of it.
        with pytest.raises(ArgumentError, match="chunk_"):
            OUTER.chunk(chunk_size, alignments)

    @given(boxes, st.data())
    @settings(deadline=None)
    def test_chunks_partition_the_box_with_borders_on_multiples(self, box, data):
        borders = data.draw(factors.map(lambda f: tuple(5 * n for n in f)), "alignments")
        times = data.draw(st.tuples(*[st.integers(1, 3)] * 3), "chunk_size / alignments")
        sizes = tuple(a * b for a, b in zip(borders, times, strict=True))
        aligned = data.draw(st.booleans(), "aligned")
        chunks = list(box.chunk(sizes, borders if aligned else None))
        assert_partition(box, chunks)
        for chunk in chunks:
            for axis in range(3):
                assert chunk.size[axis] <= sizes[axis]
                start = chunk.topleft[axis]
                if start != box.topleft[axis]:
                    multiple, begin = (borders, 0) if aligned else (sizes, box.topleft[axis])
                    assert (start - begin) % multiple[axis] == 0


def assert_partition(box: BoundingBox, parts: list[BoundingBox]) -> None:
    """Assert that no part is empty and every voxel of the box lies in exactly one."""
    assert all(box.contains_bbox(part) and not part.is_empty for part in parts)
    assert sum(part.volume for part in parts) == box.volume
    # Parts inside the box whose volumes add up partition it if no two of them overlap; on a
    # grid, that is to say that they are the product of disjoint intervals.
    axes = [{(part.topleft[i], part.bottomright[i]) for part in parts} for i in range(3)]
    assert len(parts) == len(set(parts)) == np.prod([len(axis) for axis in axes]) or not parts
    for axis in axes:
        ordered = sorted(axis)
        assert all(a[1] == b[0] for a, b in itertools.pairwise(ordered))


class TestOracle:
    """The bounding boxes of the `webknossos` library give the same answers."""

    @given(one=full_boxes, other=full_boxes)
    @settings(deadline=None)
    def test_two_boxes(self, webknossos, one, other):
        a, b = (webknossos.BoundingBox(box.topleft, box.size) for box in (one, other))
        assert one.contains_bbox(other) == a.contains_bbox(b)
        assert_same(one.intersected_with(other, dont_assert=True), a.intersected_with(b, True))
        assert_same(one.extended_by(other), a.extended_by(b))
        assert tuple(a.bottomright) == one.bottomright

    @given(box=full_boxes, mag=their_mags, ceil=st.booleans())
    @settings(deadline=None)
    def test_mags(self, webknossos, box, mag, ceil):
        ours = box.align_with_mag(mag, ceil=ceil)
        if ours.is_empty:
            return  # theirs have negative sizes or raise
        theirs = webknossos.BoundingBox(box.topleft, box.size).align_with_mag(
            webknossos.Mag(mag.factors), ceil
        )
        assert_same(ours, theirs)
        assert_same(ours.in_mag(mag), theirs.in_mag(webknossos.Mag(mag.factors)))

    @given(box=full_boxes, borders=factors, times=st.integers(1, 3), aligned=st.booleans())
    @settings(deadline=None, max_examples=40)
    def test_chunks(self, webknossos, box, borders, times, aligned):
        borders = tuple(8 * n for n in borders)
        sizes = tuple(n * times for n in borders)
        given_borders = borders if aligned else None
        theirs = webknossos.BoundingBox(box.topleft, box.size).chunk(sizes, given_borders)
        for mine, other in zip(box.chunk(sizes, given_borders), theirs, strict=True):
            assert_same(mine, other)

    @given(mag=their_mags)
    @settings(deadline=None)
    def test_mag_texts(self, webknossos, mag):
        other = webknossos.Mag(mag.factors)
        assert other.to_layer_name() == str(mag)
        assert tuple(other.to_list()) == mag.factors


def assert_same(mine: BoundingBox, theirs: Any) -> None:
    assert (mine.topleft, mine.size) == (tuple(theirs.topleft), tuple(theirs.size))
