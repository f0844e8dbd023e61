"""How far long work is: a bar in a terminal or a notebook, and now and then a line in a log."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

import tqdm.auto

EVERY = 30.0  # seconds between two lines


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def draws_bars() -> bool:
    """Whether standard error is a place where a bar can be drawn over and over again."""
    in_notebook = tqdm.auto.notebook_tqdm.__module__ == "tqdm.notebook"
    return in_notebook or sys.stderr.isatty()


class Lines:
    """Lines that say what goes on, how far it is and how long it takes; the first after ``EVERY`` seconds.

    Args:
        total: how many steps there are.
        done: how many were done before this began.
    """

    def __init__(self, description: str, total: int, *, done: int = 0) -> None:
        self.description = description
        self.total = total
        self.before = done
        self.started = self.last = time.monotonic()

    def step(self, done: int, facts: str = "") -> None:
        """Writes a line if the last one is long ago, or if there were lines and this is the end."""
        now = time.monotonic()
        due = now - self.last >= EVERY
        if not due and not (done == self.total and self.last > self.started):
            return
        self.last = now
        gone = now - self.started
        left = gone / max(1, done - self.before) * (self.total - done)
        parts = [
            f"{self.description}: {done:,} of {self.total:,} ({done / max(1, self.total):.0%})",
            f"{duration(gone)} gone",
            f"about {duration(left)} left" if done < self.total else "done",
            *([facts] if facts else []),
        ]
        print(", ".join(parts), file=sys.stderr, flush=True)


def progress(items: Any, description: str, *, show: bool) -> Iterable[Any]:
    """The items (which have a length), saying how many were taken."""
    if not show:
        return items
    if draws_bars():
        return tqdm.auto.tqdm(items, desc=description, leave=False)
    return _with_lines(items, Lines(description, len(items)))


def _with_lines(items: Iterable[Any], lines: Lines) -> Iterator[Any]:
    for done, item in enumerate(items, 1):
        yield item
        lines.step(done)
