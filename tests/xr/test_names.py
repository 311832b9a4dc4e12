"""Names of layers that xarray takes for something else, and attributes as others read them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

import wkdask
from wkdask.arrays.labelled import layer_name, variable_name

NAMES = [
    *("c", "x", "y", "z", "x_", "x__", "dims", "attrs", "1", "2-2-1", "a b", "voxels", "mag", "é"),
    *("<b>", "a&b", "%20", "name", "wkw", "[a]", "a*", "a?", "CON", "a.zarr", "$", "a:b"),
]
EDGE = 16


def filled(path: Path, names: list[str], **options: Any) -> wkdask.Dataset:
    dataset = wkdask.create(path, (8, 8, 40))
    box = wkdask.BoundingBox((16, 0, 0), (EDGE,) * 3)
    for number, name in enumerate(names):
        options = {"category": "color", "dtype": "uint8", **options}
        layer = dataset.add_layer(name, bounding_box=box, **options)
        voxels = np.full((EDGE,) * 3, number + 1, layer.dtype)
        for mag in (1, 2):
            layer.add_mag(mag, 8, 1).write(voxels[::mag, ::mag, ::mag], (16 // mag, 0, 0))
    return dataset


@given(st.from_regex(r"[cxyz]?_{0,3}[ab]?", fullmatch=True))
def test_names_go_there_and_back(name: str) -> None:
    assert layer_name(variable_name(name)) == name
    assert variable_name(name) not in ("c", "x", "y", "z")


def test_a_dataset_with_all_of_them(tmp_path: Path) -> None:
    dataset = filled(tmp_path / "tissue", NAMES)
    opened = xr.open_dataset(dataset.path, engine="wkw", chunks={})
    assert list(opened.data_vars) == [variable_name(name) for name in NAMES]
    for number, name in enumerate(NAMES):
        assert int(opened[variable_name(name)].max()) == number + 1
    tree = xr.open_datatree(dataset.path, engine="wkw")
    assert {node.path for node in tree.leaves} == {f"/{n}/{m}" for n in NAMES for m in (1, 2)}
    assert set(dataset.to_datatree().children) == set(NAMES)
    opened.wkw.to_wkw(tmp_path / "copy", align="rechunk", block_edge=8, blocks_per_file_edge=1)
    copied = wkdask.open(tmp_path / "copy")
    assert list(copied.layers) == NAMES
    (opened + np.uint8(1)).astype("uint8").wkw.store(copied, align="rechunk")
    for number, name in enumerate(NAMES):
        assert copied[name][1].read((16, 0, 0), (2, 2, 2)).tolist() == [
            [[[number + 2] * 2] * 2] * 2
        ]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {}) for name in NAMES),
        *(("x", options) for options in ({"chunks": None}, {"coords": "physical"})),
    ],
    ids=str,
)
def test_an_array(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    layer = filled(tmp_path / "tissue", [name])[name]
    array = layer.to_xarray(**options)
    assert array.name == variable_name(name)
    assert int(array.to_dataset().max()[array.name]) == 1
    made = array.wkw.to_wkw(tmp_path / "made", block_edge=8, blocks_per_file_edge=1)
    assert made.layer is not None
    assert made.layer.name == name
    array.wkw.store(layer[1])
    assert int(array.isel(c=0, x=3).wkw.at_mag(2).max()) == 1


@pytest.mark.parametrize("name", ["x", "x_", "a b", "<b>", "a.zarr"])
def test_zarr(tmp_path: Path, name: str) -> None:
    dataset = filled(tmp_path / "tissue", [name])
    wkdask.convert(dataset, tmp_path / "out.zarr")
    back = wkdask.convert(tmp_path / "out.zarr", tmp_path / "back", blocks_per_file_edge=1)
    assert list(back.layers) == [name]
    assert wkdask.equal(dataset, back)


class TestAttributes:
    def test_no_unit_of_values(self, tmp_path: Path) -> None:
        dataset = filled(tmp_path / "tissue", ["color"])
        array = dataset["color"].to_xarray()
        assert array.attrs["voxel_size_unit"] == "nanometer"
        assert not {"unit", "units", "long_name"} & set(array.attrs)
        plt = pytest.importorskip("matplotlib.pyplot")
        plt.switch_backend("agg")
        drawn = array.isel(c=0, z=0).plot()
        assert drawn.colorbar.ax.get_ylabel() == "color"
        plt.close("all")
        for attrs in (
            xr.open_dataset(dataset.path).attrs,
            dataset.attrs,
            dataset.to_datatree().attrs,
        ):
            assert "unit" not in attrs
            assert attrs["voxel_size_unit"] == "nanometer"

    @pytest.mark.parametrize("largest", [None, 5, 2**53, 2**63 + 1])
    @pytest.mark.parametrize("coords", ["voxel", "physical"])
    def test_files(self, tmp_path: Path, largest: int | None, coords: Any) -> None:
        pytest.importorskip("zarr")
        dataset = filled(tmp_path / "t", ["cells"], category="segmentation", dtype="uint64")
        dataset["cells"].largest_segment_id = largest
        for found in (
            xr.open_dataset(dataset.path, coords=coords, chunks={}),
            dataset["cells"].to_xarray(coords=coords).to_dataset(),
            xr.open_dataset(dataset.path / "cells" / "1", chunks={}),
        ):
            for number, target in enumerate(("a.zarr", "a.nc")):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    if number:
                        pytest.importorskip("netCDF4")
                        found.to_netcdf(tmp_path / target, mode="w")
                        back = xr.open_dataset(tmp_path / target, engine="netcdf4")
                    else:
                        found.to_zarr(tmp_path / target, mode="w", consolidated=False)
                        back = xr.open_zarr(tmp_path / target, consolidated=False)
                assert back["cells"].wkw.box == found["cells"].wkw.box
                assert back["cells"].wkw.spacing_nm == (8, 8, 40)
                assert str(back["cells"].attrs.get("largest_segment_id")) == str(largest)
                back.close()

    def test_what_older_versions_wrote(self, tmp_path: Path) -> None:
        array = filled(tmp_path / "tissue", ["color"])["color"].to_xarray()
        array.attrs["unit"] = array.attrs.pop("voxel_size_unit")
        assert array.wkw.spacing_nm == (8, 8, 40)
        assert array.wkw.unit == "nanometer"

    def test_a_mag_that_is_not_known(self, tmp_path: Path) -> None:
        dataset = filled(tmp_path / "tissue", ["color"])
        (dataset.path / "color" / "1").rename(tmp_path / "bare")
        for found in (
            xr.open_dataset(tmp_path / "bare"),
            wkdask.open_mag(tmp_path / "bare").to_xarray(),
        ):
            assert None not in found.attrs.values()
        tree = xr.open_datatree(tmp_path / "bare", engine="wkw")
        assert None not in tree.to_dataset().attrs.values()
