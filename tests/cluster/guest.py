"""First process of a machine of the cluster, in namespaces of its own: gives it name, hosts and network.

    guest.py HOSTNAME HOSTS ADDRESS COMMAND...

HOSTS is mounted as /etc/hosts. ADDRESS is that of the node's network card `eth0`, `shared` when it uses its owner's
network, `head` when it has no processes of its own. When this process ends, the kernel ends all else on the node.
"""

import os
import subprocess
import sys
import time
from pathlib import Path


def run(*argv: str) -> None:
    subprocess.run(argv, check=True)


def plug_in(address: str) -> None:
    while subprocess.run(["ip", "link", "show", "eth0"], capture_output=True, check=False).returncode:
        time.sleep(0.05)  # until the owner has put the cable in
    run("ip", "link", "set", "lo", "up")
    run("ip", "address", "add", f"{address}/24", "dev", "eth0")
    run("ip", "link", "set", "eth0", "up")


def main(hostname: str, hosts: str, address: str, *command: str) -> None:
    run("mount", "--bind", hosts, "/etc/hosts")
    Path("/proc/sys/kernel/hostname").write_text(hostname)
    if address == "head":
        os.execvp(command[0], command)
    run("mount", "-t", "proc", "proc", "/proc")
    run("mount", "-t", "tmpfs", "-o", "mode=1777", "tmpfs", "/dev/shm")
    if address != "shared":
        plug_in(address)
    daemon = subprocess.Popen(command)
    while os.wait()[0] != daemon.pid:  # orphans of the node become its children, and are buried here
        pass


if __name__ == "__main__":
    main(*sys.argv[1:])
