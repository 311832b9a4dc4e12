"""`wkdask.dataset.lookup`: what lies at a path; tests/xr/test_engine.py opens what it finds."""

from __future__ import annotations

from typing import Any

import pytest

import wkdask
from wkdask.dataset.lookup import is_bare_mag, is_dataset, kind_of


@pytest.mark.parametrize(
    ("name", "kind"),
    [(".", "dataset"), ("color", "layer"), ("color/2-2-1", "mag"), ("notes", None), ("no", None)],
)
def test_what_lies_at_a_path(
    tissue: wkdask.Dataset, monkeypatch: pytest.MonkeyPatch, name: str, kind: str | None
) -> None:
    tissue.add_layer("color", "color", "uint8").add_mag("2-2-1")
    (tissue.path / "notes").mkdir()
    path = tissue.path / name
    assert kind_of(path) == kind

    def refuse(*_: Any) -> Any:
        raise AssertionError("a directory may hold millions of files, and is not listed for this")

    monkeypatch.setattr("os.scandir", refuse)
    assert (is_dataset(path), is_bare_mag(path)) == (kind == "dataset", kind == "mag")
