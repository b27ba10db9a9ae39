"""A worker's hold on its warm child: start it, hand it a job, kill it, start it again.

The child leads its own process group, so that a kill reaches whatever it started. Its answers are
numbers; everything it prints goes to the worker's standard error, which is the site's own log.
"""

import json
import logging
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fl_core.artifacts.documents import to_bytes
from fl_core.errors import ServerFailed
from flows.warm_child import ChildSetup, Job, RunEnd

_LOOK_S = 0.5
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    """What one run may take; chosen at the site, never by a deployment.

    Attributes:
        hard_timeout_s: Seconds after which the child is killed; None is unbounded.
        memory_bytes: Resident memory above which it is killed, so that the machine's own
            out-of-memory killer need not choose; None is unbounded. Counted on Linux only.
    """

    hard_timeout_s: float | None = None
    memory_bytes: int | None = None


NO_LIMITS = Limits()


class WarmChild:
    """One child process, started when needed and replaced when it died.

    Args:
        setup: What the child is told first.
        environment: The child's whole environment.
        keep_open: File descriptors that the child inherits, such as the lock of its worker.
        limits: What one run may take.
    """

    def __init__(
        self,
        setup: ChildSetup,
        *,
        environment: Mapping[str, str],
        keep_open: Sequence[int] = (),
        limits: Limits = NO_LIMITS,
    ) -> None:
        self._limits = limits
        self._setup = setup
        self._environment = dict(environment)
        self._keep_open = tuple(keep_open)
        self._process: subprocess.Popen[bytes] | None = None
        # kill() comes from another thread than run(); a kill must not race the start of a child.
        self._lock = threading.Lock()

    @property
    def pid(self) -> int | None:
        """Pid of the living child, or None."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def ensure(self) -> None:
        """Have a child that is ready for a job; waits until its preload is over.

        Raises:
            ServerFailed: It ended before it was ready; why is in the worker's log.
        """
        if self.pid is not None:
            return
        with self._lock:
            self._process = process = subprocess.Popen(
                [sys.executable, "-m", "flows.warm_child"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
                env=self._environment,
                pass_fds=self._keep_open,
                start_new_session=True,
            )
        end = self._ask(process, to_bytes(self._setup), NO_LIMITS)
        if end != RunEnd.OVER:
            raise ServerFailed(
                f"the warm process ended with status {end} before it was ready, expected it to "
                "load its flows; see the lines above in this log"
            )

    def run(self, job: Job) -> int:
        """Execute one job and wait for its end.

        Returns:
            A ``RunEnd``, or minus the number of the signal that ended the child.
        """
        try:
            self.ensure()
        except ServerFailed:
            return RunEnd.NOT_STARTED
        process = self._process
        if process is None:
            return RunEnd.NOT_STARTED
        return self._ask(process, to_bytes(job), self._limits)

    def kill(self) -> None:
        """Kill the child and everything it started; a job in hand ends with minus SIGKILL."""
        with self._lock:
            process = self._process
            if process is not None and process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def _ask(self, process: subprocess.Popen[bytes], line: bytes, limits: Limits) -> int:
        if process.stdin is None or process.stdout is None:
            raise ServerFailed("the warm process has no pipes, expected both; start it again")
        try:
            process.stdin.write(line + b"\n")
            answer = _read_line(process, limits)
        except BrokenPipeError:
            answer = b""
        if isinstance(answer, RunEnd):
            self.kill()
            return answer
        if answer == b"":
            return process.wait() or RunEnd.ENGINE_FAILED
        return int(json.loads(answer)["end"])


def _read_line(process: subprocess.Popen[bytes], limits: Limits) -> bytes | RunEnd:
    """Read one line; empty at the end of file, or which limit the child has reached."""
    if process.stdout is None:
        return b""
    descriptor = process.stdout.fileno()
    is_unbounded = limits == NO_LIMITS
    deadline = time.monotonic() + (limits.hard_timeout_s or float("inf"))
    line = b""
    while not line.endswith(b"\n"):
        left_s = None if is_unbounded else min(_LOOK_S, max(0.0, deadline - time.monotonic()))
        if not select.select([descriptor], [], [], left_s)[0]:
            reached = _reached(process.pid, limits, deadline)
            if reached is not None:
                return reached
            continue
        part = os.read(descriptor, 4096)
        if part == b"":
            return b""
        line += part
    return line


def _reached(pid: int, limits: Limits, deadline: float) -> RunEnd | None:
    if time.monotonic() >= deadline:
        return RunEnd.TIMED_OUT
    resident = resident_bytes(pid)
    if limits.memory_bytes is not None and resident > limits.memory_bytes:
        logger.error(
            "run killed resident_mb=%d limit_mb=%d; raise memory_gb in site.toml, or ask for a "
            "smaller base model",
            resident >> 20,
            limits.memory_bytes >> 20,
        )
        return RunEnd.OUT_OF_MEMORY
    return None


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process; 0 where the system does not tell."""
    try:
        fields = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()
    except OSError:
        return 0
    return int(fields[1]) * _PAGE_BYTES
