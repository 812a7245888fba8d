"""Ports that a process which is started now opens later.

One that Linux picks for `bind(0)` is as likely somebody else's by then: it gives them to all who ask for any.
"""

import random
import socket
from itertools import islice
from pathlib import Path

NUM_PORTS = 8000


def free_ports(count: int) -> list[int]:
    """Returns different ports that are free, of those below the range that Linux gives away."""
    stop = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    ports = random.SystemRandom().sample(range(stop - NUM_PORTS, stop), NUM_PORTS)
    return list(islice(filter(_is_free, ports), count))


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True
