"""A small real SLURM on one machine: several nodes with own addresses, host names, processes and /dev/shm.

    python tests/cluster/cluster.py start FOLDER [--nodes 3]    start it, or what of it does not run
    eval "$(python tests/cluster/cluster.py env FOLDER)"        then sbatch, squeue, ... speak to it
    python tests/cluster/cluster.py exec FOLDER n1 hostname     run a command on a node, as ssh would
    python tests/cluster/cluster.py fail FOLDER n2              cut a node's power; `start` brings it back
    python tests/cluster/cluster.py status FOLDER
    python tests/cluster/cluster.py stop FOLDER

Needs root on Linux; installs SLURM's Debian packages where they are missing. Neither systemd nor cgroups are needed.
Everything is under FOLDER (a short path). Partitions: main; low and high, where a job in high preempts those in low.

Nodes are namespaces of this machine with a bridge between them; where network namespaces are not permitted they share
its network and have addresses of their own in 127.0.0.0/8. All see the same files.
"""

import argparse
import dataclasses
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import machine
import network
from daemons import ClusterError, wait_until
from parts import Parts
from slurm_files import Layout, write_files


class Cluster:
    """One cluster, started by this process or another.

    Attributes:
        environment: in which SLURM's commands speak to this cluster.
        nodes: their names.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.parts = Parts(Layout(**json.loads((folder / LAYOUT).read_text()), folder=folder))
        self.environment = self.parts.environment
        self.nodes = self.parts.layout.nodes
        self.run = self.parts.run

    def job(self, job_id: str) -> dict[str, str]:
        """Returns what SLURM knows about a job, or a task of an array (`12_3`): JobState, Restarts, ExitCode, ..."""
        line = self.run("scontrol", "--oneliner", "show", "job", job_id).splitlines()[0]
        return dict(word.split("=", 1) for word in line.split() if "=" in word)

    def wait_for(self, job_ids: Collection[str], states: Collection[str]) -> None:
        """Waits until each of the jobs is in one of the states, such as RUNNING or COMPLETED.

        Raises:
            ClusterError: it did not come about; with what the jobs are.
        """

        def are_there() -> bool:
            return all(self.job(job_id)["JobState"] in states for job_id in job_ids)

        try:
            wait_until(are_there, f"{', '.join(job_ids)} to be {' or '.join(states)}")
        except ClusterError as error:
            names = ("JobId", "JobName", "JobState", "Reason", "Restarts", "ExitCode", "StdOut")
            jobs = [{name: self.job(job_id).get(name) for name in names} for job_id in job_ids]
            raise ClusterError(f"{error}; {jobs}") from None

    def on(self, node: str) -> list[str]:
        """Returns the words before a command that have it run on a node; it is killed when their process is."""
        namespaces = ["--mount", "--uts", "--ipc", "--pid", *(["--net"] if self.parts.layout.has_networks else [])]
        inside = ["setpriv", "--pdeathsig", "KILL", "env", f"--chdir={Path.cwd()}"]
        return ["nsenter", "--target", str(self.parts.init(node)), *namespaces, "--", *inside]

    def exec(self, node: str, argv: Sequence[str | Path], **keywords: Any) -> str:
        """Runs a command on a node and returns what it prints; keywords are those of `subprocess.run`."""
        return self.run(*self.on(node), *argv, **keywords)

    def address(self, node: str) -> str:
        return self.parts.layout.address(node)

    def fail(self, node: str) -> None:
        """Cuts a node's power. SLURM finds out by itself, after `slurm_files.NODE_TIMEOUT_SECONDS`."""
        self.parts.cut_node(node)

    def restore(self, node: str) -> None:
        """Brings a node back, if its power was cut, and waits until jobs can run on it."""
        if not self.parts.daemons.pid(node):
            # One that comes back before SLURM has missed it would leave its jobs in states that nothing ends.
            self.run("scontrol", "update", f"nodename={node}", "state=down", "reason=lost power")
            self.parts.start_node(node)
            self.parts.wait_until_ready([node])

    def stop(self) -> None:
        self.parts.stop()


LAYOUT = "cluster.json"


def start(folder: Path, **layout: Any) -> Cluster:
    """Starts a cluster in a new folder, or what does not run of the one that is there (which keeps its layout).

    Args:
        layout: fields of `Layout`, such as num_nodes.

    Raises:
        machine.UnavailableError: this machine cannot have one.
        ClusterError: something did not start.
    """
    folder = folder.absolute()
    if (folder / LAYOUT).exists() and (cluster := Cluster(folder)).parts.daemons.running():
        for node in cluster.nodes:
            cluster.restore(node)
        cluster.parts.start()
        return cluster
    cluster = _lay_out(Layout(folder=folder, **layout))
    try:
        cluster.parts.start()
    except BaseException:
        cluster.stop()
        raise
    return cluster


def _lay_out(layout: Layout) -> Cluster:
    """Makes folder, network and configuration of a cluster."""
    folder = layout.folder
    if folder.exists() and any(folder.iterdir()):
        if not (folder / LAYOUT).exists():
            raise ClusterError(f"{folder} is neither empty nor a cluster's")
        subprocess.run(["rm", "-rf", *folder.iterdir()], check=True)
    for name in ("run", "log", "munge", "state"):
        (folder / name).mkdir(parents=True, mode=0o755)
    machine.prepare(folder / "log" / "apt.log")
    has_networks = layout.has_networks and machine.has_networks()
    if layout.has_networks and not has_networks:
        print("no network namespaces here: nodes share this machine's network (127.0.0.0/8)", file=sys.stderr)
    layout = network.settle(layout, has_networks)
    fields = {name: value for name, value in dataclasses.asdict(layout).items() if name != "folder"}
    (folder / LAYOUT).write_text(json.dumps(fields))
    write_files(layout, *machine.installed_slurm())
    return Cluster(folder)


# ------------------------------------------------------------------------------------------- command line


def _status(cluster: Cluster) -> int:
    running = cluster.parts.daemons.running()
    print("runs:", ", ".join(running) or "nothing")
    if "slurmctld" in running:
        print(cluster.run("sinfo", "--Node", "--long"))
    return 0 if set(cluster.nodes) <= set(running) else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    for name in ("start", "stop", "status", "env", "fail", "exec"):
        action = actions.add_parser(name)
        action.add_argument("folder", type=Path)
        if name == "start":
            action.add_argument("--nodes", type=int, default=2, help="number of nodes (default: %(default)s)")
            action.add_argument("--shared-network", action="store_true", help="as where there are no namespaces for it")
        if name in ("fail", "exec"):
            action.add_argument("node")
        if name == "exec":
            action.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    try:
        return _act(options)
    except ClusterError as error:
        print(f"cluster: {error}", file=sys.stderr)
        return 2


def _act(options: argparse.Namespace) -> int:
    folder = options.folder.absolute()
    if options.action == "start":
        start(folder, num_nodes=options.nodes, has_networks=not options.shared_network)
        return 0
    if not (folder / LAYOUT).exists():
        raise ClusterError(f"no cluster in {folder}")
    cluster = Cluster(folder)
    if options.action == "status":
        return _status(cluster)
    if options.action == "exec":
        os.execvpe("nsenter", [*cluster.on(options.node), *options.command], cluster.environment)
    if options.action == "env":
        print(f'export SLURM_CONF={shlex.quote(cluster.environment["SLURM_CONF"])} PATH="$PATH:/usr/sbin"')
    elif options.action == "fail":
        cluster.fail(options.node)
    else:
        cluster.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
