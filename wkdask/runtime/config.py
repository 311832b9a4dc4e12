"""Settings of wkdask in dask's configuration, with the defaults of `wkdask.yaml`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask.config
import yaml
from dask.utils import parse_timedelta

from wkdask.errors import ArgumentError
from wkdask.geometry import whole

if TYPE_CHECKING:
    from wkdask.storage.volume import WriteOptions

__all__ = [
    "blocks_of_new",
    "no_workers_timeout",
    "progress_style",
    "setting",
    "window",
    "write_options",
]

_STYLES = ("auto", "line", "plain")

dask.config.update_defaults(
    yaml.safe_load(Path(__file__).with_name("wkdask.yaml").read_text(encoding="utf-8"))
)


def setting(name: str) -> Any:
    """Return a setting below `wkdask`.

    Examples
    --------
    >>> setting("block-type")
    'lz4hc'
    """
    return dask.config.get(f"wkdask.{name}")


def blocks_of_new(given: str | None, data_format: str = "wkw") -> str | None:
    """Return how blocks are stored: as was said, or else as is configured, which is for WKW only.

    None, of other formats, is what the format thinks best.
    """
    return given or (str(setting("block-type")) if data_format == "wkw" else None)


def write_options() -> WriteOptions | None:
    """Return how files are written unless a view says otherwise; None if that is as always.

    Raises
    ------
    ArgumentError
        If a setting can't be used.
    """
    given = [setting(name) for name in ("fsync", "keep-zeros", "hc-level")]
    if given == [False, False, None]:
        return None
    # Not above: `dask config list` imports this module, and needs no voxels.
    from wkdask.storage.volume import WriteOptions

    try:
        return WriteOptions(*given)
    except ArgumentError as error:
        raise ArgumentError(f"a setting below wkdask can't be used: {error}") from None


def window() -> int:
    """Return how many tasks are in flight on a cluster, at least."""
    count = whole(setting("window"), "wkdask.window")
    if count < 1:
        raise ArgumentError(f"the setting wkdask.window is {count}, but must be at least 1.")
    return count


def no_workers_timeout() -> float:
    """Return for how many seconds a cluster may have no worker; without end is infinite.

    Raises
    ------
    ArgumentError
        If the setting is neither a time nor null.
    """
    configured = setting("no-workers-timeout")
    if configured is None:
        return math.inf
    try:
        return float(parse_timedelta(configured))
    except (AttributeError, IndexError, KeyError, ValueError) as error:
        raise ArgumentError(
            f"the setting wkdask.no-workers-timeout is {configured!r}, but must be a time, such as "
            "'300s' or '2 hours', or null."
        ) from error


def progress_style() -> str:
    """Return how progress is shown: `"auto"`, `"line"` or `"plain"`."""
    style = setting("progress-style")
    if style not in _STYLES:
        raise ArgumentError(
            f"the setting wkdask.progress-style is {style!r}, but must be one of "
            f"{', '.join(_STYLES)}."
        )
    return str(style)
