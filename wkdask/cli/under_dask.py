"""`dask wkdask ...`, the same commands; and the settings of wkdask for `dask config list`."""

from __future__ import annotations

from wkdask.cli import main as commands
from wkdask.runtime import config

__all__: list[str] = []

main = commands.main
"""The command, found by dask through an entry point."""
# Importing the module has told dask the defaults; this only says that it is needed.
_settings = config.setting
