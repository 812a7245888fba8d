"""What each node of a run is busy with: `runs/<name>/system/<host>.jsonl`, written by a thread.

No collective and no file that training waits for: a node that cannot write its file goes on without one. One line
holds one sample; amounts per second are means since the line before.
"""

import csv
import json
import logging
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread
from typing import Any

import psutil

from avff import distributed
from avff.config import Config
from avff.engine.append_log import AppendLog, truncate
from avff.errors import CheckpointError
from avff.run_folder import SYSTEM

logger = logging.getLogger(__name__)

GIB, MIB = 2**30, 2**20
INFINIBAND = Path("/sys/class/infiniband")
SHARED_MEMORY = Path("/dev/shm")
GPU_FIELDS = {
    "index": "",
    "utilization.gpu": "utilization_percent",
    "memory.used": "memory_gib",
    "temperature.gpu": "temperature_celsius",
    "power.draw": "power_watts",
}
"""What nvidia-smi is asked for, and what it is called here."""
GPU_SECONDS = 10
"""After which a call of nvidia-smi is given up; a driver in trouble may never answer."""


class SystemMetrics:
    """Samples this node every `logging.system_every_seconds` while the block runs, on the first rank of the node.

    Args:
        step: returns how far training is, from any thread.
    """

    def __init__(self, config: Config, step: Callable[[], int]):
        self._every_seconds = config.logging.system_every_seconds
        self._path = config.run_dir / SYSTEM / f"{socket.gethostname()}.jsonl"
        self._run_dir = config.run_dir
        self._step = step
        self._ended = Event()
        self._thread = Thread(target=self._run, daemon=True, name="system metrics")

    def __enter__(self) -> "SystemMetrics":
        if self._every_seconds and distributed.local_rank() == 0:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    def _run(self) -> None:
        try:
            self._path.parent.mkdir(exist_ok=True)
            truncate(self._path)  # what a power loss tore
            log = AppendLog(self._path)
            self._sample_into(log)
            log.close()
        except (OSError, psutil.Error, CheckpointError) as error:
            logger.warning("%s: %s; this node is not measured any more", self._path, error)

    def _sample_into(self, log: AppendLog) -> None:
        psutil.cpu_percent()  # the first call only starts to measure
        before, since = _counters(), time.monotonic()
        while not self._ended.wait(self._every_seconds):
            now, at = _counters(), time.monotonic()
            rates = {name: (now[name] - before.get(name, now[name])) / MIB / (at - since) for name in now}
            before, since = now, at
            log.append([{"time_unix": time.time(), "step": self._step(), **_levels(self._run_dir), **rates, **_gpus()}])


def _levels(run_dir: Path) -> dict[str, float]:
    """Returns how full the machine is; `cpu_percent` is the mean since the call before."""
    memory = psutil.virtual_memory()
    return {
        "cpu_percent": psutil.cpu_percent(),
        "memory_percent": memory.percent,
        "memory_gib": (memory.total - memory.available) / GIB,
        "shared_memory_gib": shutil.disk_usage(SHARED_MEMORY).used / GIB,
        "run_disk_free_gib": shutil.disk_usage(run_dir).free / GIB,
    }


def _counters() -> dict[str, int]:
    """Returns bytes so far, named as the rates in MiB/s that follow from them; a container may not see its disks."""
    disk, network = psutil.disk_io_counters(), psutil.net_io_counters()
    found: dict[str, int] = {}
    if disk is not None:
        found |= {"disk_read_mib_per_second": disk.read_bytes, "disk_written_mib_per_second": disk.write_bytes}
    if network is not None:
        found["network_received_mib_per_second"] = network.bytes_recv
        found["network_sent_mib_per_second"] = network.bytes_sent
    return found | _infiniband_counters(INFINIBAND)


def _infiniband_counters(devices: Path) -> dict[str, int]:
    """NCCL's traffic, which the counters of network interfaces do not hold; nothing without such hardware."""
    names = {"port_rcv_data": "infiniband_received_mib_per_second", "port_xmit_data": "infiniband_sent_mib_per_second"}
    found: dict[str, int] = {}
    for file, name in names.items():
        ports = list(devices.glob(f"*/ports/*/counters/{file}"))
        if ports:
            found[name] = 4 * sum(int(port.read_text()) for port in ports)  # the hardware counts words of 4 bytes
    return found


def _gpus() -> dict[str, float]:
    """Returns utilisation, memory, temperature and power of each GPU; nothing where there is none, or no answer."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return {}
    command = [program, f"--query-gpu={','.join(GPU_FIELDS)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=GPU_SECONDS)
    except subprocess.TimeoutExpired:
        return {}
    return parse_gpus(done.stdout) if done.returncode == 0 else {}


def parse_gpus(table: str) -> dict[str, float]:
    """Turns nvidia-smi's table (no header, no units) into numbers; what a GPU does not tell (`[N/A]`) is left out."""
    found: dict[str, float] = {}
    for index, *cells in csv.reader(table.splitlines(), skipinitialspace=True):
        for name, cell in zip(list(GPU_FIELDS.values())[1:], cells, strict=True):
            try:
                number = float(cell)
            except ValueError:
                continue
            found[f"gpu{index}_{name}"] = number / 1024 if name == "memory_gib" else number
    return found


class NodeTail:
    """Reads what all nodes have added to their files since the last look, so that rank 0 can pass it on."""

    def __init__(self, run_dir: Path):
        self._folder = run_dir / SYSTEM
        self._offsets: dict[str, int] = {}
        self.means()  # what an earlier start wrote is old news

    def means(self) -> dict[str, float]:
        """Returns `system/<host>/<name>` -> mean over the new samples; a file that cannot be read now comes later."""
        found: dict[str, float] = {}
        for path in (self._folder / name for name in self._names()):
            try:
                samples = self._new_samples(path)
            except (OSError, ValueError) as error:
                logger.debug("%s: %s", path, error)
                continue
            for name in sorted(set().union(*samples) - {"time_unix", "step"}):
                values = [sample[name] for sample in samples if name in sample]
                found[f"{SYSTEM}/{path.stem}/{name}"] = sum(values) / len(values)
        return found

    def _names(self) -> list[str]:
        """Files of all nodes; none where the file system does not say."""
        try:
            return sorted(name for name in os.listdir(self._folder) if name.endswith(".jsonl"))
        except OSError as error:
            logger.debug("%s: %s", self._folder, error)
            return []

    def _new_samples(self, path: Path) -> list[dict[str, Any]]:
        with path.open("rb") as file:
            file.seek(self._offsets.get(path.name, 0))
            added = file.read()
        complete = added[: added.rfind(b"\n") + 1]
        self._offsets[path.name] = self._offsets.get(path.name, 0) + len(complete)
        return [json.loads(line) for line in complete.splitlines()]
