"""A Redis whose wall clock can be stepped while it runs.

A library that is loaded before the C library adds an offset, read from a file, to the time that Redis asks for. Other
processes and Redis's monotonic clock keep the right time.
"""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

from taskpool.redis.embedded import RedisServer, find_redis_server

SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile int64_t *offset_us;

__attribute__((constructor)) static void begin(void) {
  int file = open(getenv("CLOCK_OFFSET_FILE"), O_RDONLY);
  void *found = mmap(0, sizeof(int64_t), PROT_READ, MAP_SHARED, file, 0);
  close(file);
  if (found != MAP_FAILED) offset_us = found;
}

static int64_t shifted_us(void) {
  static int (*real)(clockid_t, struct timespec *);
  struct timespec now;
  if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
  real(CLOCK_REALTIME, &now);
  return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000 + (offset_us ? *offset_us : 0);
}

int gettimeofday(struct timeval *restrict tv, void *restrict zone) {
  int64_t us = shifted_us();
  tv->tv_sec = us / 1000000;
  tv->tv_usec = us % 1000000;
  return 0;
}

time_t time(time_t *to) {
  time_t now = shifted_us() / 1000000;
  if (to) *to = now;
  return now;
}

int clock_gettime(clockid_t id, struct timespec *to) {
  static int (*real)(clockid_t, struct timespec *);
  if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
  if (id != CLOCK_REALTIME) return real(id, to);
  int64_t us = shifted_us();
  to->tv_sec = us / 1000000;
  to->tv_nsec = us % 1000000 * 1000;
  return 0;
}
"""


class ShiftedClock:
    """The wall clock of each redis-server that is started as `binary`, in a new `directory`."""

    def __init__(self, directory: Path, binary: str | None) -> None:
        directory.mkdir()
        source, library, self._offset = directory / "shift.c", directory / "shift.so", directory / "offset"
        source.write_text(SOURCE)
        subprocess.run(["gcc", "-shared", "-fPIC", "-O2", "-o", library, source, "-ldl"], check=True)
        self.env = {"LD_PRELOAD": str(library), "CLOCK_OFFSET_FILE": str(self._offset)}
        """The variables with which any other program reads this clock, too."""
        self._shifted_us = 0
        self._offset.write_bytes(struct.pack("q", 0))
        wrapper = directory / "redis-server"
        wrapper.write_text(
            "#!/bin/sh\n"
            f'export LD_PRELOAD="{library}" CLOCK_OFFSET_FILE="{self._offset}"\n'
            f'exec "{binary or find_redis_server()}" "$@"\n'
        )
        wrapper.chmod(0o700)
        self.binary = str(wrapper)

    @property
    def offset_s(self) -> float:
        """By how much it is ahead of the machine's clock."""
        return self._shifted_us / 1_000_000

    def step(self, seconds: float) -> None:
        """Sets the clock forward, or back. Redis sees all of it at once."""
        self._shifted_us += round(seconds * 1_000_000)
        with self._offset.open("r+b") as file:
            file.write(struct.pack("q", self._shifted_us))


class ShiftedRedis:
    """One redis-server in `directory`, until it is stopped."""

    def __init__(self, directory: Path, binary: str | None) -> None:
        self._clock = ShiftedClock(directory, binary)
        self.server = RedisServer(directory, binary=self._clock.binary)
        self.server.start()

    @property
    def url(self) -> str:
        return self.server.url

    def step(self, seconds: float) -> None:
        """Sets the clock forward, or back. Redis sees all of it at once."""
        self._clock.step(seconds)
