"""Running a recipe from a command: the event loop, and signals that ask it to stop in good order."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from service.cli.failures import Interrupted

if TYPE_CHECKING:
    import asyncio

# asyncio is imported when a recipe runs: it would be half of the time that `--help` takes.

T = TypeVar("T")

_ENDING = ("SIGINT", "SIGTERM", "SIGHUP")


def run(recipe: Coroutine[Any, Any, T]) -> T:
    """Run `recipe` to its end and return its result.

    SIGINT, SIGTERM and SIGHUP cancel it; it then undoes what it began, and Interrupted is raised.
    """
    import asyncio  # noqa: PLC0415

    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(_interruptible(recipe))


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return what makes event loops; None for Python's own."""
    try:
        import uvloop  # noqa: PLC0415 - not on every platform
    except ImportError:
        return None
    return uvloop.new_event_loop


async def _interruptible(recipe: Coroutine[Any, Any, T]) -> T:
    import asyncio  # noqa: PLC0415

    task = asyncio.ensure_future(recipe)
    received: list[signal.Signals] = []

    def stop(number: signal.Signals) -> None:
        # Once is enough: what runs now may already be the way back, which must not be cut short.
        if not received:
            task.cancel()
        received.append(number)
        word = "still stopping" if len(received) > 1 else "stopping in good order"
        with contextlib.suppress(OSError):  # the terminal may be what went away
            print(f"{number.name}: {word}, please wait", file=sys.stderr, flush=True)

    with _handled(stop):
        try:
            return await task
        except asyncio.CancelledError as exc:
            if received:
                raise Interrupted(
                    f"stopped by {received[0].name} before it was done", hint="Live data is as it was; run it again."
                ) from exc
            raise


@contextlib.contextmanager
def answering() -> Iterator[None]:
    """While somebody is asked within a recipe, have a signal end the question: the loop, which would cancel the recipe,
    does not turn meanwhile. It raises KeyboardInterrupt, which click tells as Abort.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [getattr(signal, name) for name in _ENDING if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    woken = signal.set_wakeup_fd(-1)  # or the loop would cancel the recipe afterwards as well
    try:
        for number in numbers:
            signal.signal(number, signal.default_int_handler)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(woken)


@contextlib.contextmanager
def _handled(stop: Callable[[signal.Signals], None]) -> Iterator[None]:
    import asyncio  # noqa: PLC0415

    loop = asyncio.get_running_loop()
    handled = []
    for name in _ENDING:
        number = getattr(signal, name, None)
        if number is None:
            continue
        with contextlib.suppress(NotImplementedError, ValueError):  # Windows; not the main thread
            loop.add_signal_handler(number, stop, number)
            handled.append(number)
    try:
        yield
    finally:
        for number in handled:
            loop.remove_signal_handler(number)
