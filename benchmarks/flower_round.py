"""What a round costs in Flower, without training: the figure that ours is put beside.

    python -m benchmarks.flower_round --sites 5 10 --rounds 5

Flower is installed into an environment of its own (``--environment``, made when absent), because
its pins are not ours. A SuperLink and one SuperNode per site run as processes on loopback; the app
averages arrays of the demo adapter's shapes (FedAvg) and evaluates nothing. Printed is the median
time of a round as the server app sees it, from sending to the new average, the first round apart.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path
from typing import Any

from flows.processes import free_ports

FLOWER = "flwr==1.41.0"
PYPROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "noop"
version = "1.0.0"
description = "rounds without training"
license = "Apache-2.0"
dependencies = ["flwr==1.41.0"]

[tool.hatch.build.targets.wheel]
packages = ["."]

[tool.flwr.app]
publisher = "bench"

[tool.flwr.app.components]
serverapp = "noop.server_app:app"
clientapp = "noop.client_app:app"

[tool.flwr.app.config]
rounds = 5
sites = 5
report = ""
"""
CLIENT = """
from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    content = RecordDict(
        {
            "arrays": message.content["arrays"],
            "metrics": MetricRecord({"num-examples": 1}),
        }
    )
    return Message(content=content, reply_to=message)
"""
SERVER = """
import json
import time
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()
SHAPES = {
    f"layer{n}.{part}.{which}": shape
    for n in range(6)
    for part in ("query", "value")
    for which, shape in {"a": (4, 384), "b": (384, 4)}.items()
} | {"head": (7, 384), "bias": (7,)}


class Timed(FedAvg):
    times = []

    def configure_train(self, *arguments, **named):
        self.times.append([time.monotonic()])
        return super().configure_train(*arguments, **named)

    def aggregate_train(self, *arguments, **named):
        found = super().aggregate_train(*arguments, **named)
        self.times[-1].append(time.monotonic())
        return found


@app.main()
def main(grid: Grid, context: Context) -> None:
    sites = int(context.run_config["sites"])
    strategy = Timed(
        fraction_train=1.0, fraction_evaluate=0.0, min_train_nodes=sites, min_available_nodes=sites
    )
    arrays = ArrayRecord(
        {name: Array(np.zeros(shape, dtype=np.float32)) for name, shape in SHAPES.items()}
    )
    strategy.start(grid, arrays, num_rounds=int(context.run_config["rounds"]))
    seconds = [end - begin for begin, end in strategy.times]
    Path(str(context.run_config["report"])).write_text(json.dumps(seconds))
"""


def install(environment: Path) -> None:
    """Install Flower into its own environment, unless it is there."""
    if (environment / "bin" / "flwr").exists():
        return
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    pip = [sys.executable, "-m", "pip", "--python", str(environment / "bin" / "python")]
    subprocess.run([*pip, "install", "-q", FLOWER], check=True)


def measure(environment: Path, n_sites: int, rounds: int) -> dict[str, Any]:
    """Run one app over real processes and return its figures."""
    with tempfile.TemporaryDirectory(prefix="flower-bench-") as name:
        folder = Path(name)
        report = folder / "seconds.json"
        _write_app(folder / "app")
        ports = free_ports(1 + n_sites)
        env = {
            **os.environ,
            "FLWR_HOME": str(folder / "home"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "PATH": f"{environment / 'bin'}:{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
        }
        (folder / "home").mkdir()
        (folder / "home" / "config.toml").write_text(
            f'[superlink]\ndefault = "here"\n\n[superlink.here]\n'
            f'address = "127.0.0.1:{ports[0]}"\ninsecure = true\n'
        )
        started = _start(folder, env, ports)
        try:
            return {"sites": n_sites} | _run(folder, env, report, n_sites, rounds)
        finally:
            # Each has children of its own, which share its process group.
            for process in started:
                os.killpg(process.pid, signal.SIGTERM)
            for process in started:
                process.wait(timeout=30)
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)


def _write_app(app: Path) -> None:
    (app / "noop").mkdir(parents=True)
    (app / "pyproject.toml").write_text(PYPROJECT)
    (app / "noop" / "__init__.py").write_text("")
    (app / "noop" / "client_app.py").write_text(textwrap.dedent(CLIENT))
    (app / "noop" / "server_app.py").write_text(textwrap.dedent(SERVER))


def _start(folder: Path, env: dict[str, str], ports: list[int]) -> "list[subprocess.Popen[bytes]]":
    def spawn(name: str, *argv: str) -> "subprocess.Popen[bytes]":
        with (folder / f"{name}.log").open("wb") as log:
            return subprocess.Popen(
                argv, env=env, stdout=log, stderr=log, cwd=folder, start_new_session=True
            )

    link = ("--insecure", "--host", "127.0.0.1", "--port", str(ports[0]))
    started = [spawn("superlink", "flower-superlink", *link)]
    time.sleep(8)
    for number, port in enumerate(ports[1:]):
        own = ("--superlink", f"127.0.0.1:{ports[0]}", "--port", str(port))
        started.append(spawn(f"node{number}", "flower-supernode", "--insecure", *own))
    return started


def _run(
    folder: Path, env: dict[str, str], report: Path, n_sites: int, rounds: int
) -> dict[str, Any]:
    config = f'rounds={rounds} sites={n_sites} report="{report}"'
    argv = ["flwr", "run", str(folder / "app"), "here", "--run-config", config, "--stream"]
    log = folder / "run.log"
    with log.open("wb") as output:
        # The stream can outlive the run, so the report is what is waited for.
        process = subprocess.Popen(argv, env=env, stdout=output, stderr=output)
    until = time.monotonic() + 300 + 30 * rounds
    while not (report.exists() or process.poll()) and time.monotonic() < until:
        time.sleep(0.5)
    process.terminate()
    process.wait(timeout=30)
    if not report.exists():
        raise RuntimeError(f"no report from flower: {log.read_text()[-2000:]}")
    time.sleep(0.5)
    seconds = json.loads(report.read_text())
    later = sorted(seconds[1:])
    return {
        "first_round_s": round(seconds[0], 2),
        "round_s": round(later[len(later) // 2], 2),
        "round_max_s": round(later[-1], 2),
    }


def main() -> None:
    """Measure every number of sites and print one JSON line each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sites", type=int, nargs="+", default=[5, 10])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--environment", type=Path, default=Path.home() / ".cache" / "fedloom-bench-flower"
    )
    chosen = parser.parse_args()
    install(chosen.environment)
    for n_sites in chosen.sites:
        print(json.dumps(measure(chosen.environment, n_sites, chosen.rounds)), flush=True)


if __name__ == "__main__":
    main()
