"""The commands that compare and convert. Heavy imports wait until a command runs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import click

from wkdask.cli.options import (
    Scheduler,
    errors_as_text,
    json_option,
    print_json,
    progress_option,
    scheduler_options,
    shows_bar,
)

__all__: list[str] = []

_FAILED = 2
"""The exit code of `equal` for errors, because 1 says that the sides differ."""


class _Three(click.ParamType):
    """Three numbers with commas between them, as WEBKNOSSOS' commands take them."""

    name = "X,Y,Z"

    def __init__(self, kind: Callable[[str], Any]) -> None:
        self._kind = kind

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[Any, ...]:
        """Return the numbers."""
        if isinstance(value, tuple):
            return value
        try:
            x, y, z = map(self._kind, value.split(","))
        except ValueError:
            self.fail(f"{value!r} must be three numbers with commas between them.", param, ctx)
        return x, y, z


@click.command()
@click.argument("a", type=click.Path())
@click.argument("b", type=click.Path())
@click.option("--layer-name", help="The only layer to compare.  [default: all]")
@click.option("--mag", "mags", multiple=True, help="A mag to compare, repeatable.  [default: all]")
@scheduler_options
@json_option
@progress_option
def equal(
    a: str,
    b: str,
    *,
    layer_name: str | None,
    mags: tuple[str, ...],
    scheduler: Scheduler,
    as_json: bool,
    progress: bool | None,
) -> None:
    """Compare the datasets or mag directories A and B, voxel by voxel.

    Stops at the first difference and prints it. Ends with exit code 0 if they are equal, 1 if they
    differ, and 2 if that can't be told.

    \b
    Example:
      wkdask equal tissue backup --layer-name color
    """
    from wkdask.dataset.compare import equal as compare
    from wkdask.dataset.dataset import Dataset

    with errors_as_text(_FAILED), scheduler.executor() as executor:
        sides: list[Any] = [a, b]
        if layer_name is not None:
            sides = [Dataset(side)[layer_name] for side in sides]
        found = compare(
            *sides, mags=mags or None, executor=executor, progress=shows_bar(progress, as_json)
        )
    print_json(found.as_dict()) if as_json else click.echo(str(found))
    sys.exit(0 if found else 1)


@click.command()
@click.argument("source", type=click.Path())
@click.argument("target", type=click.Path())
@click.option("--layer-name", help="Of a dataset, the layer to convert; else the name of the new.")
@click.option("--category", type=click.Choice(["color", "segmentation"]), help="What it shows.")
@click.option("--voxel-size", type=_Three(float), help="Edges of a voxel of mag 1, in --unit.")
@click.option("--unit", help="The unit of --voxel-size.  [default: nanometer]")
@click.option("--axes", help="The axes of an array, such as zyx or czyx.")
@click.option("--t", type=int, help="Which time point, from 0, if there are several.")
@click.option(
    "--gaps",
    type=click.Choice(["zeros", "close"]),
    help="Where numbers are missing in the names of slices: slices of zeros, or none.",
)
@click.option("--offset", type=_Three(int), help="Where the first voxel goes.")
@click.option("--mag", "mags", multiple=True, help="A mag to convert, repeatable.  [default: all]")
@click.option(
    "--to",
    type=click.Choice(["wkw", "zarr3", "ome-zarr", "zarr"]),
    help="The format of TARGET.  [default: ome-zarr if its name ends in .zarr, else wkw]",
)
@click.option(
    "--blocks-per-file-edge",
    type=int,
    default=32,
    show_default=True,
    help="Of files of a dataset.",
)
@click.option(
    "--retries", type=click.IntRange(min=0), default=0, help="How often a failed task is retried."
)
@click.option("--resume", is_flag=True, help="Go on where an earlier run with --resume ended.")
@scheduler_options
@json_option
@progress_option
def convert(
    source: str,
    target: str,
    scheduler: Scheduler,
    as_json: bool,
    progress: bool | None,
    mags: tuple[str, ...],
    **options: Any,
) -> None:
    """Convert SOURCE to WKW, or a layer to OME-Zarr, with mags, boxes and voxel size.

    SOURCE is a dataset or mag directory, OME-Zarr, a zarr array, a .npy file, or a TIFF stack:
    a directory of slices, a quoted pattern for them, or a file of many pages. TARGET is a dataset,
    which may exist and gets another layer, or a path that ends in .zarr.

    \b
    Example:
      wkdask convert 'slices/*.tif' tissue --layer-name color --voxel-size 11.24,11.24,28
    """
    from wkdask.dataset import describe
    from wkdask.dataset.dataset import Dataset
    from wkdask.formats.convert import convert as convert_images

    with errors_as_text(), scheduler.executor() as executor:
        made = convert_images(
            source, target, mags=mags or None, executor=executor,
            progress=shows_bar(progress, as_json), **options,
        )  # fmt: skip
        if isinstance(made, Dataset):
            facts = describe.describe(made.path)
            text = describe.as_text(facts)
        else:
            facts = {"path": str(made)}
            text = f"made {made}"
    print_json(facts) if as_json else click.echo(text)
