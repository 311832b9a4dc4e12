"""The commands for what people look at: a plane as a picture, a report as a page."""

from __future__ import annotations

from pathlib import Path

import click

from wkdask.cli.options import errors_as_text
from wkdask.errors import ArgumentError

__all__: list[str] = []


@click.command()
@click.argument("path", type=click.Path())
@click.option("--layer-name", help="Which layer.  [default: the first]")
@click.option("--overlay", help="A segmentation that is drawn over it, half transparent.")
@click.option("--axis", type=click.Choice(["x", "y", "z"]), default="z", show_default=True)
@click.option("--at", type=float, help="Where, in voxels of mag 1.  [default: the middle]")
@click.option("--mag", help="Which mag is read.  [default: the finest within --max-pixels]")
@click.option(
    "--max-pixels", type=click.IntRange(1, 30_000), default=2048, show_default=True,
    help="Voxels per axis that are read; beyond that, some are left out.",
)  # fmt: skip
@click.option("--output", type=click.Path(), required=True, help="The PNG file to write.")
def slice(  # noqa: A001
    path: str,
    *,
    layer_name: str | None,
    overlay: str | None,
    axis: str,
    at: float | None,
    mag: str | None,
    max_pixels: int,
    output: str,
) -> None:
    """Write a plane of the dataset PATH as a PNG picture, to scale.

    Grey values are drawn as they are, or from the 0.5th to the 99.5th percentile if they are no
    bytes. Segments have the colours of the viewer.

    \b
    Example:
      wkdask slice tissue --layer-name color --axis z --at 100 --output plane.png
    """
    from wkdask.dataset.report import shown_layers
    from wkdask.show.pictures import draw_plane
    from wkdask.show.pixels import png

    with errors_as_text():
        if Path(output).suffix.lower() != ".png":
            raise ArgumentError(f"--output is {output}, but must end in .png: it is a PNG picture.")
        layers = shown_layers(path, [layer_name, *([overlay] if overlay else [])], mag)
        image = draw_plane(layers, axis, at, most=max_pixels)
        Path(output).write_bytes(png(image))
    click.echo(f"{output}: {image.shape[1]} x {image.shape[0]} pixels")


@click.command()
@click.argument("path", type=click.Path())
@click.option(
    "--output", type=click.Path(), default="report.html", show_default=True, help="The page."
)
def report(path: str, output: str) -> None:
    """Write one HTML page that shows the dataset PATH; it needs nothing else.

    Layers with their mags and files, a plane of each, what values they have, and what
    `wkdask check` finds.

    \b
    Example:
      wkdask report tissue --output tissue.html
    """
    from wkdask.dataset.report import report_html

    with errors_as_text():
        Path(output).write_text(report_html(path), encoding="utf-8")
    click.echo(output)
