"""File descriptors 1 and 2 of a worker process: what C code prints, and what the programs that tasks start print.

In a process that runs one task at a time, that is the task's output too. Where several run, nobody knows whose it is:
it goes to the worker's own output, as what belongs to nobody. Each is a pipe which a thread of the
process empties; the fork server holds its other end as well and reads what is left in it when the process has died. A
task that ends costs one look, whether something is still in there.
"""

from __future__ import annotations

import codecs
import fcntl
import itertools
import os
import select
import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import Final

from workers.capture import Capture

STREAMS: Final = {"stdout": 1, "stderr": 2}
PIPE_BYTES: Final = 1 << 20
"""Code that prints more than this while it holds the interpreter up waits for ever: nobody can empty the pipe then."""
READ_BYTES: Final = 1 << 18
MOST_AT_END: Final = 4 << 20
"""What a task left running may write without a pause: the end of the task doesn't wait for it."""
RELOOK_MS: Final = 200
_ENDED: Final = select.POLLHUP | select.POLLERR | select.POLLNVAL
_F_SETPIPE_SZ: Final = 1031


class Pipes:
    """Both pipes, made before the fork; `output` reads from them, `become_output` writes into them."""

    def __init__(self) -> None:
        self._ends: dict[str, tuple[int, int]] = {}
        try:
            for name in STREAMS:
                self._ends[name] = os.pipe()
        except OSError:
            self.close()
            raise
        for reader, writer in self._ends.values():
            os.set_blocking(reader, False)
            try:
                fcntl.fcntl(writer, _F_SETPIPE_SZ, PIPE_BYTES)
            except OSError:  # not Linux, or its user has too many large ones
                pass
        self.readers = {name: reader for name, (reader, _) in self._ends.items()}

    def become_output(self) -> dict[str, int]:
        """Puts the pipes in the place of this process's output; returns by name where that went until now."""
        before = {name: os.dup(fd) for name, fd in STREAMS.items()}
        for name, (_, writer) in self._ends.items():
            os.dup2(writer, STREAMS[name])
        self.close_writers()
        return before

    def close(self) -> None:
        """Close both ends of all."""
        for end in itertools.chain(*self._ends.values()):
            os.close(end)

    def close_writers(self) -> None:
        """What is left is to read."""
        for _, writer in self._ends.values():
            os.close(writer)

    def left_over(self) -> dict[str, str]:
        """What nobody has read, by stream; the pipes are closed then."""
        found = {name: read_all(reader).decode("utf-8", "replace") for name, reader in self.readers.items()}
        for reader in self.readers.values():
            os.close(reader)
        return {name: text for name, text in found.items() if text}


def take_output(capture: Capture, pipes: Pipes | None) -> Output | None:
    """Begins the life of a worker process with its output; returns what is still to be started, None without pipes."""
    capture.begin(pipes.become_output() if pipes else {})
    return Output(pipes.readers, capture) if pipes else None


class Output:
    """The process's side: a thread reads what comes; `settle` sees to it that all of a task's output has been read.

    A task may close descriptor 1 or 2, or put something else in its place. The end of file tells: nothing can write
    into the pipe any more. `settle` then puts the pipe back, so that the next task's output is kept again.
    """

    def __init__(self, readers: Mapping[str, int], capture: Capture) -> None:
        self._readers, self._capture = readers, capture
        self._names = {reader: name for name, reader in readers.items()}
        self._lock = threading.Lock()
        self._decoders = {name: codecs.getincrementaldecoder("utf-8")("replace") for name in readers}
        self._has_part = False
        """Whether a decoder may hold a part of a character."""
        self._wait_ms: int | None = None
        self._now = select.poll()
        self._later = select.poll()
        for poll in (self._now, self._later):
            for reader in readers.values():
                poll.register(reader, select.POLLIN)
        self._look = self._now.poll
        self.thread = threading.Thread(target=self._read_for_ever, name="taskpool-output", daemon=True)

    def start(self) -> None:
        """Start to read."""
        self.thread.start()

    def settle(self) -> None:
        """Returns when all that was written until now has gone to where it belongs."""
        with self._lock:
            found = self._look(0)
            if found:
                self._take(MOST_AT_END)
            if found or self._has_part:
                self._has_part = False
                for name, decoder in self._decoders.items():
                    self._deliver(name, decoder.decode(b"", final=True))
            for reader, events in found:
                if events & _ENDED:
                    self._put_back(self._names[reader], reader)

    def put_back(self) -> None:
        """Puts the pipes back that a task has closed."""
        with self._lock:
            for reader, events in self._look(0):
                if events & _ENDED:
                    self._put_back(self._names[reader], reader)

    def _put_back(self, name: str, reader: int) -> None:
        """Puts the pipe in the place of the descriptor again."""
        try:
            writer = os.open(f"/proc/self/fd/{reader}", os.O_WRONLY)  # the other end of the same pipe
            os.dup2(writer, STREAMS[name])
            if writer != STREAMS[name]:
                os.close(writer)
            os.set_inheritable(STREAMS[name], True)
            self._later.register(reader, select.POLLIN)
        except OSError:  # not Linux, or the task has closed our end, too: this stream's output is lost from now on
            for poll in (self._now, self._later):
                with suppress(KeyError):
                    poll.unregister(reader)

    def _read_for_ever(self) -> None:
        while True:
            # `poll` doesn't see what is registered while it waits.
            ended = [reader for reader, events in self._later.poll(self._wait_ms) if events & _ENDED]
            with self._lock:
                self._take(READ_BYTES)
                for reader in ended:
                    if not self._has_writer(reader):
                        with suppress(KeyError):
                            self._later.unregister(reader)  # until `settle` puts it back; else this loop would spin
                        self._wait_ms = RELOOK_MS

    def _has_writer(self, reader: int) -> bool:
        """Whether something can still write: the pipe may have been put back meanwhile."""
        return not any(at == reader and events & _ENDED for at, events in self._look(0))

    def _take(self, most: int) -> None:
        """Reads what is there, up to about `most` bytes of each stream."""
        for name, reader in self._readers.items():
            decoder = self._decoders[name]
            left = most
            while left > 0 and (data := read_some(reader)):
                left -= len(data)
                self._has_part = True
                self._deliver(name, decoder.decode(data))

    def _deliver(self, name: str, text: str) -> None:
        if text and not self._capture.take(name, text, "descriptor"):
            self._capture.terminal.show(name, text, None)


def read_all(fd: int) -> bytes:
    """What a pipe holds now."""
    data = b""
    while len(data) < PIPE_BYTES and (more := read_some(fd)):
        data += more
    return data


def read_some(fd: int) -> bytes:
    """A part of it; empty when there is nothing, or nobody who could write any more."""
    try:
        return os.read(fd, READ_BYTES)
    except OSError:  # nothing is there; or a task has closed it
        return b""
