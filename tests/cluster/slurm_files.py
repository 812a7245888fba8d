"""What the machines of the cluster are called, where they are, and SLURM's configuration that follows."""

import dataclasses
import socket
import sys
import time
from pathlib import Path

from daemons import ClusterError

GRACE_SECONDS = 90
"""Between the signal to a preempted job of partition `low` and its end."""
NODE_TIMEOUT_SECONDS = 60
"""Silence after which SLURM counts a node as down: longer than a busy or suspended machine keeps its nodes from answering."""
CREDENTIAL_SECONDS = 20
"""In which the start of a job or step has to reach its nodes, or fails; so long a requeued job is held back."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """A cluster's machines.

    Attributes:
        folder: everything of the cluster: configuration, keys, state, logs.
        num_nodes: nodes n1, n2, ...
        cpus, memory_mb, gpus: what each node claims to have; none of it need exist.
        number: 0 to 249; no other cluster on this machine has it, and addresses and ports follow from it.
        has_networks: each node has a network of its own; False: an address of its own in 127.0.0.0/8.
    """

    folder: Path
    num_nodes: int = 2
    cpus: int = 8
    memory_mb: int = 16_000
    gpus: int = 2
    number: int = 0
    has_networks: bool = True

    def __post_init__(self) -> None:
        if len(str(self.folder)) > 70 or not str(self.folder).replace("/", "").isascii() or " " in str(self.folder):
            raise ClusterError(f"{self.folder}: SLURM's sockets need a plain path below 70 characters")

    @property
    def nodes(self) -> list[str]:
        return [f"n{i}" for i in range(1, self.num_nodes + 1)]

    @property
    def subnet(self) -> str:
        """198.18.0.0/15 is set aside for tests of networks (RFC 2544)."""
        return f"198.18.{self.number}." if self.has_networks else f"127.{self.number + 2}.0."

    @property
    def first_port(self) -> int:
        return 2_000 + 50 * self.number

    @property
    def login_address(self) -> str:
        return f"{self.subnet}1" if self.has_networks else "127.0.0.1"

    @property
    def head_address(self) -> str:
        return f"{self.subnet}2"

    def address(self, node: str) -> str:
        return f"{self.subnet}{10 + int(node[1:])}"


def write_files(layout: Layout, slurm_version: tuple[int, int], slurmstepd: Path) -> None:
    """Writes everything that the daemons read."""
    write = {
        "hosts": _hosts(layout),
        "slurm.conf": _slurm_conf(layout),
        "slurmdbd.conf": _slurmdbd_conf(layout),
        "gres.conf": _gres_conf(layout),
        "slurmstepd": _SLURMSTEPD.format(python=sys.executable, slurmstepd=slurmstepd),
    }
    if slurm_version >= (23, 11):  # it wants to be told to leave cgroups alone; earlier ones do not know the word
        write["cgroup.conf"] = "CgroupPlugin=disabled\n"
    for name, text in write.items():
        (layout.folder / name).write_text(text)
    (layout.folder / "slurmdbd.conf").chmod(0o600)
    (layout.folder / "slurmstepd").chmod(0o755)
    for i in range(layout.gpus):
        (layout.folder / f"gpu{i}").touch()


def _hosts(layout: Layout) -> str:
    me = socket.gethostname()
    here = [line.split("#")[0].split() for line in Path("/etc/hosts").read_text().splitlines()]
    beyond = [" ".join(words) for words in here if words and me not in words and words[0] not in ("127.0.0.1", "::1")]
    own = ["127.0.0.1 localhost", "::1 localhost", f"{layout.login_address} {me}", f"{layout.head_address} head"]
    return "\n".join([*own, *(f"{layout.address(node)} {node}" for node in layout.nodes), *beyond]) + "\n"


def _slurm_conf(layout: Layout) -> str:
    folder, port = layout.folder, layout.first_port
    nodes = [
        f"NodeName={node} NodeHostname={node} NodeAddr={layout.address(node)} Port={port + 1 + i} CPUs={layout.cpus}"
        f" Sockets=1 CoresPerSocket={layout.cpus} ThreadsPerCore=1 RealMemory={layout.memory_mb} State=UNKNOWN"
        + (f" Gres=gpu:{layout.gpus}" if layout.gpus else "")
        for i, node in enumerate(layout.nodes, start=1)
    ]
    # Job ids that no earlier cluster had: result files are found under an id.
    return _SLURM_CONF.format(
        folder=folder,
        head=layout.head_address,
        port=port,
        accounting_port=port + 1,
        memory_per_cpu_mb=layout.memory_mb // layout.cpus,
        first_job=int(time.time()) % 60_000_000 + 1,
        node_timeout=NODE_TIMEOUT_SECONDS,
        credential=CREDENTIAL_SECONDS,
        grace=GRACE_SECONDS,
        nodes="\n".join(nodes),
    )


def _slurmdbd_conf(layout: Layout) -> str:
    return _SLURMDBD_CONF.format(folder=layout.folder, head=layout.head_address, port=layout.first_port + 1)


def _gres_conf(layout: Layout) -> str:
    if not layout.gpus:
        return ""
    return f"NodeName={','.join(layout.nodes)} Name=gpu File={layout.folder}/gpu[0-{layout.gpus - 1}]\n"


# The step adopts those of its processes that lose their parent (PR_SET_CHILD_SUBREAPER), so that SLURM finds and ends
# them with the step, as it does where it tracks processes with cgroups.
_SLURMSTEPD = """\
#!/bin/sh
exec {python} -I -c '
import ctypes, os, sys
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
os.execv("{slurmstepd}", ["slurmstepd", *sys.argv[1:]])' "$@"
"""

_SLURM_CONF = """\
ClusterName=test
SlurmctldHost=head({head})
SlurmctldPort={port}
CommunicationParameters=NoCtldInAddrAny
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# A requeued job is held back until its credential has expired: by default 120 s.
AuthInfo=socket={folder}/munge/socket,cred_expire={credential}
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/run.slurmctld
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdPidFile={folder}/run.%n
SlurmdLogFile={folder}/log/%n.log
SlurmdSpoolDir={folder}/spool-%n
MailProg=/bin/true
# Neither cgroups nor binding to cores; nodes may claim what is not there.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SlurmdParameters=config_overrides
MpiDefault=none
GresTypes=gpu
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU={memory_per_cpu_mb}
# Quick reactions instead of those for large clusters; jobs stay visible for the length of a test session.
ReturnToService=2
KillWait=30
SlurmdTimeout={node_timeout}
SlurmctldTimeout=60
TCPTimeout=2
MessageTimeout=30
MinJobAge=7200
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
# A job in `high` preempts jobs in `low`: they get the signal that they asked for, {grace} s, and are requeued.
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
FirstJobId={first_job}
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost={head}
AccountingStoragePort={accounting_port}
AccountingStoragePass={folder}/munge/socket
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=5
{nodes}
PartitionName=main Nodes=ALL Default=YES PriorityTier=1 PreemptMode=OFF
PartitionName=low  Nodes=ALL PriorityTier=1 PreemptMode=REQUEUE GraceTime={grace}
PartitionName=high Nodes=ALL PriorityTier=9 PreemptMode=OFF
"""

_SLURMDBD_CONF = """\
DbdHost=head
DbdAddr={head}
DbdPort={port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
LogFile={folder}/log/slurmdbd.log
PidFile={folder}/run.slurmdbd
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm_accounting
"""
