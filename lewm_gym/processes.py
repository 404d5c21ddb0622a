"""Child processes: spawned, one thread each, and undisturbed by Ctrl-C, which their parent decides about.

Spawned, never forked: a forked child inherits GL contexts and locks of threads that it does not have.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any

#: One thread each, set before the child imports numpy: the processes are the parallelism.
ONE_THREAD = {
    name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
}


class ProcessDied(ChildProcessError):
    """A worker has ended before its answer."""


class Worker:
    """A child process that answers requests, in their order; it ends with this process.

    Args:
        make: Returns what answers a request; picklable, called in the child at the first request.
    """

    def __init__(self, make: Callable[[], Callable[[Any], Any]]) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        with interrupts_held(), _environment(ONE_THREAD):
            self.process = context.Process(target=_serve, args=(theirs, make), daemon=True)
            self.process.start()
        theirs.close()  # so that the child's death is seen as the end of the stream

    def send(self, request: Any) -> None:
        """Sends a picklable request; to a dead process, without effect."""
        with contextlib.suppress(BrokenPipeError):  # `receive` will say so
            self.connection.send(request)

    def receive(self, timeout_s: float | None = None) -> Any:
        """Returns the next answer, for which it waits as long as `timeout_s`, if that is given.

        Raises:
            ProcessDied: If the process has ended; what it raised itself is raised here.
            TimeoutError: If no answer came in time.
        """
        try:
            if not self.connection.poll(timeout_s):
                raise TimeoutError(f"it did not finish within {timeout_s:.0f} s")
            answer, error = self.connection.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            raise ProcessDied(f"process died (exit code {self.process.exitcode})") from None
        if error is not None:
            raise error
        return answer

    def stop(self) -> None:
        """Ends the process."""
        self.connection.close()
        self.process.terminate()
        self.process.join()


def _serve(connection: Connection, make: Callable[[], Callable[[Any], Any]]) -> None:
    """Answers until the other end closes: a worker whose parent was killed ends by itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # blocked until here, see interrupts_held
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    answer = None
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            request = connection.recv()
            try:
                answer = answer or make()
                connection.send((answer(request), None))
            except (EOFError, ConnectionError):
                raise
            except Exception as error:
                error.add_note(f"in a worker process:\n{traceback.format_exc()}")
                connection.send((None, _picklable(error)))


@contextlib.contextmanager
def interrupts_held() -> Iterator[None]:
    """Holds Ctrl-C back until the block ends; processes started within it do not see it from their first moment.

    A child inherits the blocked signal through fork and exec, so that its interpreter starts undisturbed. In this
    process other threads (BLAS, tqdm) may still take the signal: the handler notes it, and it counts at the end.
    """
    resource_tracker.ensure_running()  # starting it later would unblock the signal (bpo-33613)
    came: list[int] = []
    # Python lets only the main thread set handlers, and runs them only there.
    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, lambda number, _: came.append(number)) if main else None
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)  # one that waited comes now
        if main:
            signal.signal(signal.SIGINT, before)
    if came and callable(before):
        before(signal.SIGINT, None)


@contextlib.contextmanager
def stops_noted() -> Iterator[list[int]]:
    """Notes Ctrl-C and SIGTERM in the list that it yields; they count when the block ends, a second one at once.

    For work that saves its state before it stops. Outside the main thread, which alone gets signals, nothing is noted.
    """
    noted: list[int] = []
    before: dict[int, Any] = {}

    def note(number: int, frame: Any) -> None:
        if noted:
            restore()
            signal.raise_signal(number)
        noted.append(number)

    def restore() -> None:
        while before:
            number, handler = before.popitem()
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
                before[number] = signal.signal(number, note)
    try:
        yield noted
    finally:
        restore()
    if noted:
        signal.raise_signal(noted[0])


def _picklable(error: Exception) -> Exception:
    """Returns `error`, or what says the same where it cannot go through a pipe."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
