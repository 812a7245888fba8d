"""Names and addresses: the usual reasons why ranks wait for each other for ever."""

import ipaddress
import os
import socket
from collections.abc import Sequence

from avff.doctor.check import Check, fail, ok

INTERFACE_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


def host_name(num_nodes: int, main_address: str) -> Check:
    """Looks up this host's own name, at whose address gloo listens for the other ranks."""
    name = socket.gethostname()
    addresses = lookup(name)
    interface = interface_towards(main_address) if num_nodes > 1 else ""
    return judge_host_name(name, addresses, num_nodes, interface, chosen=os.environ.get("GLOO_SOCKET_IFNAME", ""))


def judge_host_name(name: str, addresses: Sequence[str], num_nodes: int, interface: str, *, chosen: str) -> Check:
    """
    Args:
        addresses: that the name stands for; none where it is unknown.
        interface: by which this node reaches the first one.
        chosen: GLOO_SOCKET_IFNAME, with which the name does not matter.
    """
    if num_nodes == 1 or chosen:
        return ok(f"listens on {chosen}, as GLOO_SOCKET_IFNAME says" if chosen else "one node, no name is looked up")
    fix = f"export GLOO_SOCKET_IFNAME={interface or 'INTERFACE'} NCCL_SOCKET_IFNAME={interface or 'INTERFACE'} on every node"
    if not addresses:
        return fail(f"the name {name} has no address", f"{fix}, or add it to /etc/hosts")
    if all(ipaddress.ip_address(address).is_loopback for address in addresses):
        return fail(f"the name {name} means {addresses[0]}, where no other node can reach it", fix)
    return ok("the node's own name has an address that others can reach")


def main_address(address: str, num_nodes: int) -> Check:
    """Looks up where rank 0 listens."""
    return judge_main_address(address, lookup(address), num_nodes)


def judge_main_address(address: str, addresses: Sequence[str], num_nodes: int) -> Check:
    fix = "give the first node's address in the cluster's network (MASTER_ADDR; launch/torchrun.sh: RENDEZVOUS)"
    if not addresses:
        return fail(f"MASTER_ADDR {address} has no address here", fix)
    if num_nodes > 1 and all(ipaddress.ip_address(one).is_loopback for one in addresses):
        return fail(f"MASTER_ADDR {address} means {addresses[0]}, which is every node itself", fix)
    return ok(f"{address} is {addresses[0]}")


def interfaces() -> Check:
    """Compares the interfaces that the environment chooses with those that are there and up."""
    import psutil

    chosen = {name: os.environ[name] for name in INTERFACE_VARIABLES if os.environ.get(name)}
    return judge_interfaces(chosen, {name for name, state in psutil.net_if_stats().items() if state.isup})


def judge_interfaces(chosen: dict[str, str], up: set[str]) -> Check:
    """
    Args:
        chosen: variable -> names as gloo and NCCL take them: prefixes, `=exact`, `^none of these`, with commas.
        up: interfaces that are up.
    """
    for variable, names in chosen.items():
        wanted = [name.lstrip("=") for name in names.split(",")]
        if not names.startswith("^") and not any(one.startswith(name) for name in wanted for one in up):
            there = " ".join(sorted(up - {"lo"}))
            return fail(f"{variable}={names} is not up here", f"choose one of {there}, or unset {variable}")
    if chosen:
        return ok(", ".join(f"{variable}={names}" for variable, names in chosen.items()), facts=dict(chosen))
    several = len(up - {"lo"}) > 1
    return ok("gloo and NCCL choose their interface" + (" among several" if several else ""))


def lookup(name: str) -> list[str]:
    """Returns the addresses of a name, none where it is unknown."""
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except socket.gaierror:
        return []
    return [str(address[0]).partition("%")[0] for *_, address in found]


def interface_towards(address: str) -> str:
    """Returns the interface whose address packets to a host would carry, such as `eth0`; empty where unknown."""
    import psutil

    for target in lookup(address):
        family = socket.AF_INET6 if ":" in target else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((target, 9))  # sends nothing
            own = probe.getsockname()[0]
        for name, addresses in psutil.net_if_addrs().items():
            if any(each.address.partition("%")[0] == own for each in addresses):
                return name
    return ""
