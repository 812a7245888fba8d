"""What this machine has and permits: packages, root, namespaces, a free network."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from daemons import ClusterError, can_run

PROGRAMS = {
    "munged": "munge",
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "sbatch": "slurm-client",
    "slurmdbd": "slurmdbd",
    "mariadbd": "mariadb-server-core",
    "mariadb-install-db": "mariadb-server-core",
    "my_print_defaults": "mariadb-client-core",
    "ip": "iproute2",
    "unshare": "util-linux",
    "setpriv": "util-linux",
}
"""Programs that are needed, and the Debian packages that have them."""

PATH = os.environ["PATH"] + ":/usr/local/sbin:/usr/sbin:/sbin"
OWN_NAMESPACES = (*"unshare --mount --uts --ipc --pid --fork --kill-child=KILL --propagation private".split(),)
_POLICY = Path("/usr/sbin/policy-rc.d")


class UnavailableError(ClusterError):
    """This machine cannot have a cluster; the message says what is missing."""


def prepare(log_path: Path) -> None:
    """Installs the packages that are missing.

    Raises:
        UnavailableError: not as root on a Linux with namespaces, or packages cannot be installed.
    """
    if sys.platform != "linux" or os.geteuid() != 0:
        raise UnavailableError("a SLURM of our own needs Linux and root (namespaces, addresses, munge)")
    missing = sorted({package for program, package in PROGRAMS.items() if not shutil.which(program, path=PATH)})
    if missing:
        _install(missing, log_path)
    if not _permits():
        raise UnavailableError("this machine permits no namespaces: `unshare --mount --uts --ipc --pid` fails")


def has_networks() -> bool:
    """Tells whether network namespaces with a bridge between them are permitted."""
    return _permits("--net", then="ip link add name v0 type veth peer name v1 && ip link add name br0 type bridge")


def _permits(*flags: str, then: str = "true") -> bool:
    script = f"mount -t proc proc /proc && echo x >/proc/sys/kernel/hostname && {then}"
    return can_run(*OWN_NAMESPACES, *flags, "sh", "-c", script)


def _install(packages: list[str], log_path: Path) -> None:
    if not shutil.which("apt-get"):
        raise UnavailableError(f"these Debian packages are missing, and there is no apt-get: {' '.join(packages)}")
    print(f"installing {' '.join(packages)}", file=sys.stderr)
    had_policy = _POLICY.exists()
    if not had_policy:  # keeps the packages from starting daemons
        _POLICY.write_text("#!/bin/sh\nexit 101\n")
        _POLICY.chmod(0o755)
    install = "apt-get install -y --no-install-recommends -o DPkg::Lock::Timeout=300".split() + packages
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    try:
        with log_path.open("w") as log:
            for command in (["true"], ["apt-get", "update"]):  # again with a fresh index, if it has to be
                subprocess.run(command, stdout=log, stderr=log, check=False)
                if subprocess.run(install, stdout=log, stderr=log, env=environment, check=False).returncode == 0:
                    return
    finally:
        if not had_policy:
            _POLICY.unlink()
    last = " ".join(log_path.read_text().splitlines()[-3:])
    raise UnavailableError(f"these Debian packages are missing and cannot be installed: {' '.join(packages)} ({last})")


def installed_slurm() -> tuple[tuple[int, int], Path]:
    """Returns the version of the installed SLURM, such as (22, 5), and where its slurmstepd is."""
    version = subprocess.run(["slurmd", "-V"], capture_output=True, text=True, check=True, env={"PATH": PATH}).stdout
    major, minor = version.split()[-1].split(".")[:2]
    return (int(major), int(minor)), Path(str(shutil.which("slurmstepd", path=PATH)))
