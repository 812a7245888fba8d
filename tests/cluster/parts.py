"""The daemons and nodes of a cluster: each started so that it can be found, asked and ended by any program."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import machine
from daemons import ClusterError, Daemons, can_run, children, start_time, wait_until
from slurm_files import Layout

GUEST = Path(__file__).parent / "guest.py"
_MUNGE_FILES = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
_DATABASE_OPTIONS = [
    *("--innodb-log-file-size=16M", "--innodb-buffer-pool-size=64M", "--innodb-flush-log-at-trx-commit=0"),
    *("--innodb-use-native-aio=0", "--innodb-flush-method=fsync", "--innodb-lock-wait-timeout=900"),
]


class Parts:
    """What a cluster consists of.

    Attributes:
        environment: in which SLURM's commands speak to this cluster.
    """

    def __init__(self, layout: Layout):
        self.layout, self.folder = layout, layout.folder
        self.daemons = Daemons(layout.folder)
        outside = {key: value for key, value in os.environ.items() if not re.match("(SLURM|SBATCH|SRUN)_", key)}
        self.environment = {**outside, "PATH": machine.PATH, "SLURM_CONF": str(layout.folder / "slurm.conf")}

    def start(self) -> None:
        """Starts what does not run, and waits until jobs can run."""
        for name, start in (
            ("munged", self._start_munge),
            ("mariadbd", self._start_database),
            ("slurmdbd", self._start_accounting),
            ("slurmctld", self._start_controller),
        ):
            if not self.daemons.pid(name):
                start()
        lost = [node for node in self.layout.nodes if not self.daemons.pid(node)]
        for node in lost:
            self.start_node(node)
        self.wait_until_ready(lost)

    def stop(self) -> None:
        """Stops everything of this cluster, jobs too, and nothing else."""
        for name in ("slurmctld", "slurmdbd"):
            self.daemons.end(name)
        for node in self.layout.nodes:
            for init in children(self.daemons.pid(node) or 0):
                os.kill(init, signal.SIGKILL)
            self.daemons.end(node, signal.SIGKILL)
        for name in ("mariadbd", "munged", "network"):
            self.daemons.end(name)

    # ---------------------------------------------------------------------------------------- nodes

    def init(self, node: str) -> int:
        """Returns the first process of a node."""
        found = children(self.daemons.pid(node) or 0)
        if not found:
            raise ClusterError(f"{node} is down")
        return found[0]

    def start_node(self, node: str) -> None:
        (self.folder / f"spool-{node}").mkdir(exist_ok=True)
        has_networks = self.layout.has_networks
        own = [*machine.OWN_NAMESPACES, *(["--net"] if has_networks else [])]
        guest = self._guest(node, self.layout.address(node) if has_networks else "shared")
        self._start(node, *own, *guest, "slurmd", "-D", "-N", node, "-d", self.folder / "slurmstepd")
        if has_networks:
            self._plug_in(node)

    def cut_node(self, node: str) -> None:
        """Its network falls silent at once, without a good-bye to its peers; then its processes are gone."""
        init = self.init(node)
        if self.layout.has_networks:
            self._in_network(f"ip link delete port-{node}")
        os.kill(init, signal.SIGKILL)
        self.daemons.end(node, signal.SIGKILL)

    def wait_until_ready(self, started: Collection[str]) -> None:
        """Waits for all nodes; of those just started SLURM may still believe what it knew before."""
        since = {node: _unix_start(self.daemons.pid(node)) for node in started}
        for node in self.layout.nodes:
            wait_until(
                lambda node=node: self._is_ready(node, since.get(node, 0.0)), f"{node}; see {self.folder / 'log'}"
            )

    def _is_ready(self, node: str, since: float) -> bool:
        known = self.run("scontrol", "--oneliner", "show", "node", node)
        state, began = re.search(r"\bState=([A-Z]+\S*)", known), re.search(r"SlurmdStartTime=(\d\S+)", known)
        if not state or state[1] not in ("IDLE", "MIXED", "ALLOCATED", "COMPLETING") or not began:
            return False
        return time.mktime(time.strptime(began[1], "%Y-%m-%dT%H:%M:%S")) > since - 1  # it knows whole seconds

    def _plug_in(self, node: str) -> None:
        init = wait_until(lambda: children(self.daemons.pid(node) or 0), f"{node} to start")[0]
        own = os.readlink(f"/proc/{self.daemons.pid('network')}/ns/net")
        wait_until(lambda: os.readlink(f"/proc/{init}/ns/net") != own, f"a network of {node}")
        # Always the same hardware address: the others may still know it when the node comes back.
        card = f"peer name eth0 netns {init} address 02:00:00:00:00:{int(node[1:]):02x}"
        self._in_network(f"ip link add name port-{node} type veth {card}")
        self._in_network(f"ip link set port-{node} master bridge up")

    # ---------------------------------------------------------------------------------------- daemons

    def _start_munge(self) -> None:
        folder = self.folder / "munge"
        key = folder / "key"
        if not key.exists():
            key.touch(mode=0o600)
            key.write_bytes(os.urandom(1024))
        files = [f"--{name}={folder / value}" for name, value in _MUNGE_FILES.items()]
        # --force: it is content with parent folders that others can write to.
        self._start("munged", "munged", "--foreground", "--force", *files)
        self._wait("munged", "munge", "--no-input", "--socket", folder / "socket")

    def _start_database(self) -> None:
        data, socket = self.folder / "database", self.folder / "database.sock"
        options = ["--no-defaults", f"--datadir={data}", "--user=root", "--skip-log-bin", *_DATABASE_OPTIONS]
        if not (data / "mysql").exists():
            with self.daemons.log_path("mariadb-install").open("w") as log:
                nobody_else = ["--auth-root-authentication-method=normal", "--skip-test-db"]
                self.run("mariadb-install-db", *options, *nobody_else, stdout=log, stderr=log)
        own = [f"--socket={socket}", f"--pid-file={self.folder / 'database.pid'}", "--skip-networking"]
        self._start("mariadbd", "mariadbd", *options, *own)
        self._wait("mariadbd", "test", "-S", socket)

    def _start_accounting(self) -> None:
        socket = str(self.folder / "database.sock")
        self._start("slurmdbd", *self._on_head(), "slurmdbd", "-D", MYSQL_UNIX_PORT=socket)
        self._wait("slurmdbd", "sacctmgr", "--noheader", "show", "cluster")
        if not self.run("sacctmgr", "--noheader", "show", "cluster", "test", "format=cluster"):
            self.run("sacctmgr", "--immediate", "add", "cluster", "test")

    def _start_controller(self) -> None:
        self._start("slurmctld", *self._on_head(), "slurmctld", "-D")
        self._wait("slurmctld", "scontrol", "ping")

    # ---------------------------------------------------------------------------------------- commands

    def run(self, *argv: str | Path, **keywords: Any) -> str:
        """Runs a command in the cluster's environment, on this machine; returns what it prints."""
        options = {"env": self.environment, "text": True, "stdout": subprocess.PIPE, **keywords}
        return (subprocess.run(argv, check=True, **options).stdout or "").strip()

    def _start(self, name: str, *argv: str | Path, **variables: str) -> None:
        self.daemons.start(name, argv, {**self.environment, **variables})

    def _wait(self, name: str, *argv: str | Path) -> None:
        """Waits until a command that asks a daemon succeeds."""
        try:
            wait_until(lambda: can_run(*argv, environment=self.environment), f"{name} to answer")
        except ClusterError as error:
            lines = self.daemons.log_path(name).read_text(errors="replace").splitlines()
            raise ClusterError("\n".join([f"{error}:", *lines[-15:]])) from None

    def _on_head(self) -> list[str]:
        own = ["unshare", "--mount", "--uts", "--propagation", "private", *self._guest("head", "head")]
        return [*self._network(), *own] if self.layout.has_networks else own

    def _guest(self, hostname: str, address: str) -> list[str]:
        return [sys.executable, "-I", str(GUEST), hostname, str(self.folder / "hosts"), address]

    def _network(self) -> list[str]:
        return ["nsenter", f"--net=/proc/{self.daemons.pid('network')}/ns/net", "--"]

    def _in_network(self, command: str) -> None:
        self.run(*self._network(), *command.split())


def _unix_start(pid: int | None) -> float:
    """Returns when a process started, in seconds since 1970."""
    ticks = start_time(pid) if pid else None
    if ticks is None:
        return 0.0
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    return time.time() - uptime + int(ticks) / os.sysconf("SC_CLK_TCK")
