"""The command `wkdask`: parses, calls, prints. Heavy imports wait until a command runs."""

from __future__ import annotations

import contextlib
import io
import sys
from typing import Literal

import click

import wkdask
from wkdask.cli import convert as cli_convert
from wkdask.cli import look as cli_look
from wkdask.cli import pyramid as cli_pyramid
from wkdask.cli.options import errors_as_text, json_option, print_json, progress_option, shows_bar

__all__ = ["main"]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(wkdask.__version__)
@click.option("-v", "--verbose", is_flag=True, help="Show the traceback of an error.")
@click.option(
    "-q", "--quiet", is_flag=True, help="Print nothing but errors and what --json asks for."
)
@click.pass_context
def main(context: click.Context, *, verbose: bool, quiet: bool) -> None:
    """Lazy dask arrays on WKW volumes, the file format of WEBKNOSSOS.

    Errors go to stderr in one line. Exit codes: 0 if all went well, 1 after an error, or if a check
    or comparison found something, 2 if the command can't be understood.

    \b
    Completion for bash (zsh and fish likewise):
      eval "$(_WKDASK_COMPLETE=bash_source wkdask)"
    """
    context.obj = sys.stdout
    if quiet:
        context.with_resource(contextlib.redirect_stdout(io.StringIO()))


for command in (
    cli_convert.convert,
    cli_convert.equal,
    cli_pyramid.downsample,
    cli_pyramid.upsample,
    cli_pyramid.compress,
    cli_look.slice,
    cli_look.report,
):
    main.add_command(command)


@main.command()
@click.argument("path", type=click.Path())
@json_option
def info(path: str, as_json: bool) -> None:
    """Show what the dataset or mag directory PATH holds.

    Layers, mags, dtypes, boxes, voxel size, files and bytes on disk.

    \b
    Example:
      wkdask info tissue
    """
    from wkdask.dataset import describe

    with errors_as_text():
        facts = describe.describe(path)
    print_json(facts) if as_json else click.echo(describe.as_text(facts))
    sys.exit(1 if describe.has_errors(facts) else 0)


@main.command()
@click.argument("path", type=click.Path())
@click.option(
    "--level",
    type=click.Choice(["1", "2"]),
    default="1",
    show_default=True,
    help="1: headers, sizes, jump tables, JSON. 2: every block, too.",
)
@click.option("--sweep", is_flag=True, help="Delete what writers that died left over.")
@json_option
@progress_option
def check(path: str, level: str, sweep: bool, as_json: bool, progress: bool | None) -> None:
    """Look at every file of the dataset or mag directory PATH.

    Ends with exit code 1 if there are voxels that can't be read.

    \b
    Example:
      wkdask check tissue --level 2
    """
    from wkdask.dataset.check import check as check_files

    show = shows_bar(progress, as_json)
    with errors_as_text():
        number: Literal[1, 2] = 2 if level == "2" else 1
        report = check_files(path, level=number, sweep=sweep, progress=show)
    print_json(report.as_dict()) if as_json else click.echo(str(report))
    sys.exit(0 if report.ok else 1)


@main.command()
@click.argument("path", type=click.Path())
@click.option("--clear", is_flag=True, help="Delete them; runs then begin from the start.")
@json_option
def journals(path: str, clear: bool, as_json: bool) -> None:
    """List how far resumable runs below PATH, a dataset, layer or mag, are, and what failed.

    Any machine that sees the files can ask, also while a run goes on elsewhere.

    \b
    Example:
      wkdask journals tissue
    """
    from wkdask.runtime import journals as all_

    with errors_as_text():
        found = all_.journals(path)
        if clear:
            all_.clear_journals(path)
    if as_json:
        print_json([each.as_dict() for each in found])
        return
    for each in found:
        click.echo(str(each))
    click.echo(f"{len(found)} journals{' deleted' if clear else ''}")


@main.command()
@click.argument("dataset", type=click.Path(), required=False)
@click.option(
    "--output",
    type=click.Path(),
    help="A new directory for the results.  [default: wkdask-demo, here]",
)
def demo(dataset: str | None, output: str | None) -> None:
    """Run the whole route on a synthetic dataset, or on DATASET, and verify every voxel.

    Slices lazily, runs a function per chunk on a cluster of processes, and downsamples color and
    segmentation. DATASET is only read: results go to a new directory. Ends in PASS or FAIL.

    \b
    Example:
      wkdask demo
    """
    from wkdask.cli.demo import run_demo

    with errors_as_text():
        passed = run_demo(dataset, output, click.echo)
    click.secho("PASS" if passed else "FAIL", fg="green" if passed else "red", bold=True)
    sys.exit(0 if passed else 1)
