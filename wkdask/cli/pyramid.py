"""The commands that make mags and store them otherwise. Heavy imports wait until a command runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from wkdask.dataset.dataset import Dataset, Layer, MagView
    from wkdask.pyramid.plan import PyramidPlan
    from wkdask.runtime.run import RunReport

__all__: list[str] = []

_Command = Callable[..., Any]

_layer_option = click.option(
    "--layer-name", "layer_names", multiple=True, help="A layer, repeatable.  [default: all]"
)
_mag_option = click.option("--mag", "mags", multiple=True, help="A mag to make, repeatable.")
_from_option = click.option("--from-mag", help="Where to begin.  [default: the last mag]")
_sampling_option = click.option(
    "--sampling-mode",
    type=click.Choice(["anisotropic", "isotropic", "constant_z"]),
    default="anisotropic",
    show_default=True,
    help="Which axes are halved.",
)
_block_option = click.option(
    "--block-type",
    type=click.Choice(["raw", "lz4", "lz4hc", "zstd"]),
    help="How blocks are stored; zstd or raw in Zarr layers.  [default: lz4hc or zstd]",
)
_force_option = click.option(
    "--force", is_flag=True, help="Let a mode invent ids in a segmentation."
)
_dry_option = click.option("--dry-run", is_flag=True, help="Only tell what would be made.")
_resume_option = click.option(
    "--resume", is_flag=True, help="Go on with what an earlier run with --resume left."
)
_retries_option = click.option(
    "--retries",
    type=click.IntRange(min=0),
    default=0,
    help="How often a failed task is retried.",
)


def _with(*options: Callable[[_Command], _Command]) -> Callable[[_Command], _Command]:
    """Give a command several options, shown in this order."""

    def decorated(command: _Command) -> _Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorated


_run_options = _with(
    _resume_option, _retries_option, scheduler_options, json_option, progress_option
)


@click.command()
@click.argument("path", type=click.Path())
@_with(_layer_option, _from_option, _mag_option)
@click.option("--coarsest-mag", help="Where to end.  [default: about 100 voxels wide]")
@click.option("--mode", default="default", help="How voxels become one, such as median or mode.")
@_with(_sampling_option, _block_option, _force_option, _dry_option, _run_options)
def downsample(path: str, **options: Any) -> None:
    """Make coarser mags of the dataset PATH, of all layers or of some.

    By default each layer gets the mags that it lacks: those of WEBKNOSSOS, by median for color and
    by mode for segmentations.

    \b
    Example:
      wkdask downsample tissue --layer-name color --scheduler tcp://10.0.0.1:8786
    """
    _sample(path, "downsample", **options)


@click.command()
@click.argument("path", type=click.Path())
@_with(_layer_option, _from_option, _mag_option)
@click.option("--finest-mag", default="1", show_default=True, help="Where to end.")
@click.option("--mode", default="default", help="nearest, which is the default, or bilinear.")
@_with(_sampling_option, _block_option, _force_option, _dry_option, _run_options)
def upsample(path: str, **options: Any) -> None:
    """Make finer mags of the dataset PATH, of all layers or of some.

    \b
    Example:
      wkdask upsample tissue --layer-name cells --from-mag 4
    """
    _sample(path, "upsample", **options)


@click.command()
@click.argument("path", type=click.Path())
@_layer_option
@click.option("--mag", "mags", multiple=True, help="A mag, repeatable.  [default: all]")
@_block_option
@click.option("--block-edge", type=int, help="Voxels per edge of a block.  [default: as it is]")
@click.option("--blocks-per-file-edge", type=int, help="[default: as it is]")
@_with(_retries_option, scheduler_options, json_option, progress_option)
def compress(
    path: str,
    *,
    layer_names: tuple[str, ...],
    mags: tuple[str, ...],
    block_type: Any,
    block_edge: int | None,
    blocks_per_file_edge: int | None,
    retries: int,
    scheduler: Scheduler,
    as_json: bool,
    progress: bool | None,
) -> None:
    """Store the dataset or mag directory PATH with other blocks, in place.

    Files are replaced one by one. With --block-edge or --blocks-per-file-edge whole mags are.

    \b
    Example:
      wkdask compress tissue --layer-name color --jobs 4
    """
    edges: dict[str, Any] = {"block_edge": block_edge, "blocks_per_file_edge": blocks_per_file_edge}
    is_rechunked = edges != dict.fromkeys(edges)
    with errors_as_text():
        # All of them first: what can't be opened is told before anything is changed or started.
        views = dict(_mags_of(path, layer_names, mags))
        with scheduler.executor() as executor:
            keys: dict[str, Any] = {"block_type": block_type, "executor": executor}
            keys |= {"retries": retries, "progress": shows_bar(progress, as_json)}
            reports = {
                name: view.rechunk(**edges, **keys) if is_rechunked else view.compress(**keys)
                for name, view in views.items()
            }
        _tell(reports, as_json)


def _sample(
    path: str,
    verb: str,
    *,
    layer_names: tuple[str, ...],
    mags: tuple[str, ...],
    scheduler: Scheduler,
    as_json: bool,
    progress: bool | None,
    dry_run: bool,
    **options: Any,
) -> None:
    with errors_as_text():
        options |= {"mags": mags or None}
        # All plans first: what is wrong with one is told before anything is made or started.
        plans = list(_plans(_layers_of(path, layer_names), verb, options))
        if dry_run and as_json:
            print_json([plan.as_dict() for _, plan in plans])
        elif dry_run and plans:
            click.echo("\n\n".join(str(plan) for _, plan in plans))
        if dry_run:
            return
        with (scheduler if plans else Scheduler()).executor() as executor:
            options |= {"executor": executor, "progress": shows_bar(progress, as_json)}
            _tell({layer.name: getattr(layer, verb)(**options) for layer, _ in plans}, as_json)


def _plans(
    layers: list[Layer], verb: str, options: dict[str, Any]
) -> Iterator[tuple[Layer, PyramidPlan]]:
    """Yield what will be made; layers of which all is there are skipped, unless mags were named."""
    from wkdask.errors import NothingToDoError

    for layer in layers:
        try:
            yield layer, getattr(layer, verb)(**options, dry_run=True)
        except NothingToDoError as error:
            if options["mags"] is not None:
                raise
            _skip(str(error))


def _skip(reason: str) -> None:
    click.echo(f"Skipped: {reason}", err=True)


def _layers_of(path: str, names: tuple[str, ...]) -> list[Layer]:
    """Return the layers of these names, or all those that are stored as WKW."""
    from wkdask.dataset.dataset import Dataset

    dataset: Dataset = Dataset(path)
    if names:
        return [dataset[name] for name in dict.fromkeys(names)]
    layers = list(dataset.layers.values())
    for layer in layers:
        if not layer.properties.can_be_read:
            _skip(f"layer {layer.name!r} is stored as {layer.data_format}.")
    return [layer for layer in layers if layer.properties.can_be_read]


def _mags_of(
    path: str, layer_names: tuple[str, ...], mags: tuple[str, ...]
) -> Iterator[tuple[str, MagView]]:
    from wkdask.dataset import dataset
    from wkdask.dataset.lookup import is_dataset

    if not is_dataset(path) and not layer_names and not mags:
        yield path, dataset.open_mag(path)
        return
    for layer in _layers_of(path, layer_names):
        for mag in mags or layer.mags:
            view = layer[mag]
            if view.read_only and not layer_names and not mags:
                _skip(f"mag {mag} of layer {layer.name!r} lies outside of the dataset.")
            else:
                yield f"{layer.name}/{mag}", view


def _tell(reports: dict[str, RunReport], as_json: bool) -> None:
    if as_json:
        plain = {name: report.as_dict() for name, report in reports.items()}
        print_json(plain)
        return
    for name, report in reports.items():
        speed = report.voxels / max(report.seconds, 1e-9) / 1e6
        click.echo(f"{name}: {report}, {speed:,.0f} MVx/s written")
