"""How far a job is, for people: a moving line on a terminal, one plain sentence a step otherwise. All on stderr."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any, TextIO, cast

from service.progress import Progress

FRAMES_PER_SECOND = 5


def plain(text: str) -> str:
    """Return `text` in one line without control characters: names in archives are not allowed to move the cursor."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def size(count: float) -> str:
    """Return a number of bytes for people, in powers of 1000: `1.4 GB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def counted(count: int, one: str, many: str = "") -> str:
    """Return a number with what it counts: `1 table`, `2 tables`; `many` where an s does not make the plural."""
    return f"{count:,} {one if count == 1 else many or f'{one}s'}"


def duration(seconds: float) -> str:
    """Return a duration for people: `0:42`, `1:02:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def status(progress: Progress) -> str:
    """Return the moving line: stage, bytes, rate and, when the end is known, the time to go."""
    told = [f"{progress.stage}: {size(progress.raw)}"]
    if progress.expected_raw:
        told[0] += f" of {size(max(progress.expected_raw, progress.raw))}"
    if progress.stored:
        told.append(f"{size(progress.stored)} in the archive")
    told.append(f"{size(progress.rate)}/s")
    if progress.eta is not None:
        told.append(f"{duration(progress.eta)} to go")
    return ", ".join(told)


@contextlib.contextmanager
def reporting(*, quiet: bool = False, stream: TextIO | None = None) -> Iterator[Progress]:
    """Give a job's progress, shown on `stream` (stderr) until the block is left."""
    stream = cast(TextIO, _Lasting(stream or sys.stderr))
    if quiet:
        yield Progress()
    elif stream.isatty():
        with _moving(stream) as progress:
            yield progress
    else:
        yield Progress(on_step=lambda sentence: print(plain(sentence), file=stream, flush=True))


class _Lasting:
    """A text stream whose reader may go away: that must not stop a job, least of all its undoing."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def _moving(stream: TextIO) -> Iterator[Progress]:
    # Imported here: it takes longer than most commands.
    from rich.console import Console  # noqa: PLC0415
    from rich.live import Live  # noqa: PLC0415
    from rich.progress_bar import ProgressBar  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    progress = Progress()
    console = Console(file=stream, highlight=False, markup=False)

    def line() -> Table | Text:
        if not progress.raw:
            return Text(f"{progress.stage} ..." if progress.stage else "")
        row = Table.grid(padding=(0, 1))
        if progress.expected_raw:
            bar = ProgressBar(total=progress.expected_raw, completed=min(progress.raw, progress.expected_raw), width=24)
            row.add_row(bar, Text(status(progress), no_wrap=True, overflow="ellipsis"))
        else:
            row.add_row(Text(status(progress), no_wrap=True, overflow="ellipsis"))
        return row

    # Redrawn by a thread of rich's: the counters are read as they are, whatever the event loop does.
    with Live(get_renderable=line, console=console, refresh_per_second=FRAMES_PER_SECOND, transient=True) as live:
        progress.on_step = lambda sentence: live.console.print(plain(sentence), soft_wrap=True)
        yield progress
