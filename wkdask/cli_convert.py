"""The commands that compare and convert. Heavy imports wait until a command runs."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from wkdask.cli_options import (
    Scheduler,
    errors_as_text,
    json_option,
    progress_option,
    scheduler_options,
    shows_bar,
)

__all__: list[str] = []

_FAILED = 2
"""The exit code of `equal` for errors, because 1 says that the sides differ."""


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
    layer_name: str | None,
    mags: tuple[str, ...],
    scheduler: Scheduler,
    as_json: bool,
    progress: bool | None,
) -> None:
    """Compare the datasets or mag directories A and B, voxel by voxel.

    Stops at the first difference and prints it. Ends with exit code 0 if they are equal, 1 if they
    differ, and 2 if that can't be told.
    """
    from wkdask import comparing
    from wkdask.dataset import Dataset

    with errors_as_text(_FAILED), scheduler.executor() as executor:
        sides: list[Any] = [a, b]
        if layer_name is not None:
            sides = [Dataset(side)[layer_name] for side in sides]
        found = comparing.equal(
            *sides, mags=mags or None, executor=executor, progress=shows_bar(progress, as_json)
        )
    click.echo(json.dumps(comparing.as_json(found), indent=2) if as_json else str(found))
    sys.exit(0 if found else 1)
