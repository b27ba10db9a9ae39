"""A worker's hold on its warm child: start it, hand it a job, kill it, start it again.

The child leads its own process group, so that a kill reaches whatever it started. Its answers are
numbers; everything it prints goes to the worker's standard error, which is the site's own log.
"""

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence

from fl_core.artifacts.documents import to_bytes
from fl_core.errors import ServerFailed
from flows.warm_child import ChildSetup, Job, RunEnd


class WarmChild:
    """One child process, started when needed and replaced when it died.

    Args:
        setup: What the child is told first.
        environment: The child's whole environment.
        keep_open: File descriptors that the child inherits, such as the lock of its worker.
    """

    def __init__(
        self, setup: ChildSetup, *, environment: Mapping[str, str], keep_open: Sequence[int] = ()
    ) -> None:
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
        end = self._ask(process, to_bytes(self._setup), timeout_s=None)
        if end != RunEnd.OVER:
            raise ServerFailed(
                f"the warm process ended with status {end} before it was ready, expected it to "
                "load its flows; see the lines above in this log"
            )

    def run(self, job: Job, *, timeout_s: float | None) -> int:
        """Execute one job and wait for its end.

        Args:
            job: The flow run.
            timeout_s: Seconds after which the child is killed; None is unbounded.

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
        return self._ask(process, to_bytes(job), timeout_s=timeout_s)

    def kill(self) -> None:
        """Kill the child and everything it started; a job in hand ends with minus SIGKILL."""
        with self._lock:
            process = self._process
            if process is not None and process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def _ask(
        self, process: subprocess.Popen[bytes], line: bytes, *, timeout_s: float | None
    ) -> int:
        if process.stdin is None or process.stdout is None:
            raise ServerFailed("the warm process has no pipes, expected both; start it again")
        try:
            process.stdin.write(line + b"\n")
            answer = _read_line(process.stdout.fileno(), timeout_s=timeout_s)
        except BrokenPipeError:
            answer = b""
        if answer is None:
            self.kill()
            return RunEnd.TIMED_OUT
        if answer == b"":
            return process.wait() or RunEnd.ENGINE_FAILED
        return int(json.loads(answer)["end"])


def _read_line(descriptor: int, *, timeout_s: float | None) -> bytes | None:
    """Read one line; empty at the end of file, None when the time is over."""
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    line = b""
    while not line.endswith(b"\n"):
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        if not select.select([descriptor], [], [], left)[0]:
            return None
        part = os.read(descriptor, 4096)
        if part == b"":
            return b""
        line += part
    return line
