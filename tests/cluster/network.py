"""The cluster's own network: a namespace with a bridge, and a cable from it to this machine."""

import dataclasses
import os
import socket
import subprocess

from daemons import ClusterError, Daemons, can_run, wait_until
from slurm_files import Layout


def settle(layout: Layout, has_networks: bool) -> Layout:
    """Finds a number that no other cluster has, and makes the network that goes with it.

    Raises:
        ClusterError: all numbers are taken.
    """
    first = os.getpid() % 250
    for number in (*range(first, 250), *range(first)):
        layout = dataclasses.replace(layout, number=number, has_networks=has_networks)
        if _is_free(layout) and (not has_networks or _make(layout)):
            return layout
    raise ClusterError("no free network: stop other clusters")


def _is_free(layout: Layout) -> bool:
    """Tells whether nothing else has its addresses or listens on its first port."""
    query = ["ip", "-4", "route", "show", "root", f"{layout.subnet}0/24"]
    routes = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    with socket.socket() as probe:
        return not routes and probe.connect_ex(("127.0.0.1", layout.first_port)) != 0


def _make(layout: Layout) -> bool:
    """Makes the network; False where another cluster that starts now was faster to take its number."""
    daemons, cable = Daemons(layout.folder), f"slurm{layout.number}"
    pid = daemons.start("network", ["unshare", "--net", "sleep", "infinity"])
    own = os.readlink("/proc/self/ns/net")
    wait_until(lambda: os.readlink(f"/proc/{pid}/ns/net") != own, "a network namespace")
    if not can_run(*f"ip link add name {cable} type veth peer name login netns {pid}".split()):
        daemons.end("network")
        return False
    inside = [
        "ip link set lo up",
        # With a hardware address of its own: else it takes a port's, and changes with the ports.
        "ip link add name bridge address 02:00:00:00:01:00 type bridge",
        f"ip address add {layout.head_address}/24 dev bridge",
        "ip link set bridge up",
        "ip link set login master bridge up",
    ]
    outside = [f"ip address add {layout.login_address}/24 dev {cable}", f"ip link set {cable} up"]
    enter = f"nsenter --net=/proc/{pid}/ns/net -- "
    for line in (*(enter + line for line in inside), *outside):
        subprocess.run(line.split(), check=True)
    return True
