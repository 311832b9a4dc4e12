"""What shall be done, and what became of it: items that may wait, and are tried again.

It knows neither where items are worked on nor what they are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from wkdask.errors import WorkerLostError

__all__ = ["WAITING", "Items", "Outcome"]

WAITING = object()
"""What an iterator of items yields where none is ready before another outcome has been seen."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of an item."""

    item: Any
    value: Any = None
    error: Exception | None = None
    """Why it failed, after all retries; with its traceback where that could travel."""


class Items:
    """An iterator of items, to which those that failed come back for some time."""

    def __init__(self, items: Iterable[Any], retries: int) -> None:
        self._items = iter(items)
        self._retries = retries
        self._tried: dict[Any, int] = {}
        self._again: deque[Any] = deque()
        self._waits = False

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return self._again.popleft() if self._again else next(self._items)

    def take(self, most: int) -> Iterator[Any]:
        """Yield some items; fewer where there are no more, or none is ready."""
        self._waits = False
        for item in islice(self, most):
            if item is WAITING:
                self._waits = True
                return
            yield item

    def check_end(self) -> None:
        """Raise if the iterator waits for outcomes, when there are none to come."""
        if self._waits:
            raise RuntimeError("the items wait for an outcome, but none is in flight")

    def judged(self, outcome: Outcome) -> Iterator[Outcome]:
        """Yield the outcome, unless its item is to be tried again."""
        tried = self._tried.pop(outcome.item, 0) if self._tried or outcome.error else 0
        is_final = outcome.error is None or isinstance(outcome.error, WorkerLostError)
        if is_final or tried >= self._retries:
            yield outcome
        else:
            self._tried[outcome.item] = tried + 1
            self._again.append(outcome.item)
