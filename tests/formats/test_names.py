"""Which number of a name counts, the order by it, and what is missing."""

from __future__ import annotations

import pytest

from wkdask.errors import ArgumentError, FormatError
from wkdask.formats.names import in_order, listed


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(["s8.tif", "s9.tif", "s10.tif"], id="more digits"),
        pytest.param(["s008.tif", "s009.tif", "s010.tif"], id="leading zeros"),
        pytest.param(["s8.tif", "s09.tif", "s010.tif"], id="some leading zeros"),
        pytest.param(["z-2.tif", "z-1.tif", "z0.tif", "z1.tif"], id="signs"),
        pytest.param(["z-1.tif", "z+0.tif", "z+1.tif"], id="both signs"),
        pytest.param(["em-1.tif", "em-2.tif", "em-3.tif"], id="a dash that is no sign"),
        pytest.param(["z0.5.tif", "z1.0.tif", "z1.5.tif", "z2.0.tif"], id="decimals"),
        pytest.param(["z9.5.tif", "z10.tif", "z10.5.tif"], id="some decimals"),
        pytest.param(["run1.9.tif", "run1.10.tif", "run1.11.tif"], id="a dot between numbers"),
        pytest.param(["em.9.ome.tif", "em.10.ome.tif"], id="a number after a dot"),
        pytest.param(["2024_z1_c3.tif", "2024_z2_c3.tif"], id="numbers that stay"),
        pytest.param(["a1_z8.tif", "a1_z9.tif", "a2_z10.tif"], id="one that is told twice"),
        pytest.param(["s1_t1733.tif", "s2_t1791.tif", "s3_t1801.tif"], id="times of day"),
        pytest.param(["t9_z1.tif", "t8_z2.tif", "t7_z3.tif"], id="the one that is called z"),
        pytest.param(["S1.TIF", "s2.tif", "S3.tiff"], id="capitals"),
        pytest.param(["a.tif", "b.tif", "c.tif"], id="no numbers"),
        pytest.param(["z5.tif"], id="a single one"),
    ],
)
def test_order(names):
    assert in_order(names[::-1]) == names
    assert in_order(sorted(names), "zeros") == names


@pytest.mark.parametrize(
    ("names", "filled"),
    [
        (["z0.tif", "z1.tif", "z3.tif", "z4.tif"], [0, 1, None, 2, 3]),
        (["z0.tif", "z2.tif"], [0, None, 1]),
        (["z-1.tif", "z2.tif"], [0, None, None, 1]),
        (["z0.5.tif", "z1.0.tif", "z2.0.tif"], [0, 1, None, 2]),
    ],
)
def test_gaps(names, filled):
    with pytest.raises(FormatError, match=r'lack numbers after .* gaps="zeros"'):
        in_order(names)
    assert in_order(names, "close") == names
    assert in_order(names, "zeros") == [None if at is None else names[at] for at in filled]


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(["z1.tif", "z01.tif", "z2.tif"], id="a number twice"),
        pytest.param(["z1.tif", "z1.tiff"], id="two endings"),
        pytest.param(["z0_c0.tif", "z0_c1.tif", "z1_c0.tif", "z1_c1.tif"], id="two that count"),
        pytest.param(["a1b3.tif", "a2b2.tif", "a3b1.tif"], id="two orders"),
        pytest.param(["s1.tif", "s2.tif", "overview.tif"], id="another name"),
    ],
)
def test_what_is_not_clear(names):
    with pytest.raises(FormatError, match="not clear which number counts"):
        in_order(names, "close")


def test_choices():
    with pytest.raises(ArgumentError, match="zeros, close"):
        in_order(["z1.tif", "z2.tif"], "fill")
    with pytest.raises(FormatError, match="no common step"):
        in_order(["z1.tif", "z90000.tif"], "zeros")


def test_files_that_may_be_slices(tmp_path):
    folder = tmp_path / "sample [1]"
    folder.mkdir()
    for name in ("z0.tif", "z1.TIFF", "._z0.tif", ".hidden.tif", "notes.txt"):
        (folder / name).touch()
    (folder / "z2.tif").mkdir()
    (folder / "below").mkdir()
    expected = [str(folder / "z0.tif"), str(folder / "z1.TIFF")]
    assert sorted(listed(str(folder))) == expected
    assert sorted(listed(str(folder / "*"))) == expected
    assert sorted(listed(str(folder / "z[01]*"))) == expected
    assert listed(str(folder / "z0.tif")) == expected[:1]
    assert listed(str(folder / "nothing*")) == []
