"""Processes that stand for machines: each works on a dataset by the path that it sees."""

from __future__ import annotations

import multiprocessing
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

import wkdask
from wkdask.errors import WkdaskError
from wkdask.storage import claims

__all__ = ["Machine"]


def serve(place: str, pipe: Any) -> None:
    """Do what is asked, as another machine would; answer with None, or why it was refused."""
    # Whether the owner of a claim lives is asked of locks only on the owner's own machine.
    claims._machine = lambda: place
    with suppress(EOFError):
        while True:
            what, layer, options = pipe.recv()
            try:
                pipe.send(WORK[what](wkdask.open(Path(place) / "tissue")[layer], **options))
            except WkdaskError as error:
                pipe.send(str(error))
            except BaseException:
                pipe.send(AssertionError(traceback.format_exc()))


def write(layer: wkdask.Layer, topleft: Any, size: Any, value: int) -> None:
    voxels = np.full(size, value, np.uint8)
    layer[1].write(voxels, topleft)


def pyramid(layer: wkdask.Layer) -> None:
    layer.downsample(mags=[2, 4])


WORK = {"write": write, "pyramid": pyramid}


class Machine:
    """A process that sees the directory by one of the mounts."""

    def __init__(self, place: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        context.Process(target=serve, args=(str(place), other), daemon=True).start()

    def begin(self, what: str, layer: str, **options: Any) -> None:
        self._pipe.send((what, layer, options))

    def end(self) -> str | None:
        """Return why it was refused, or None if it was done."""
        answer = self._pipe.recv()
        if isinstance(answer, AssertionError):
            raise answer
        return answer

    def close(self) -> None:
        self._pipe.close()
