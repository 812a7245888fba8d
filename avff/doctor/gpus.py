"""GPUs of one node as the driver's own tool shows them: number, health, other users, links between them."""

import csv
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from avff.doctor.check import Check, fail, ok, warn

TOOL = "nvidia-smi"
FIELDS = (
    "index",
    "name",
    "uuid",
    "memory.total",
    "memory.used",
    "driver_version",
    "ecc.errors.uncorrected.volatile.total",
)
USED_MEGABYTES = 1000
"""What a GPU shows as used, drivers aside, where nobody works on it."""
DRIVER_DEVICE = Path("/dev/nvidiactl")
LINKS = {
    "NV": "NVLink",
    "PIX": "PCIe switch",
    "PXB": "PCIe switches",
    "PHB": "CPU",
    "NODE": "CPU",
    "SYS": "CPU sockets",
}
"""What lies between two GPUs, by the abbreviations of `nvidia-smi topo -m`."""


class Gpu(NamedTuple):
    """One line of the driver's list; `uncorrected_errors` is None where the model does not count them."""

    number: int
    name: str
    uuid: str
    total_megabytes: int
    used_megabytes: int
    driver: str
    uncorrected_errors: int | None


def ask(*arguments: str) -> str:
    """Returns what nvidia-smi prints, nothing where there is no driver.

    Raises:
        RuntimeError: it is there and fails; the message holds its words.
    """
    if not shutil.which(TOOL):
        return ""
    done = subprocess.run([TOOL, *arguments], capture_output=True, text=True, check=False)
    words = (done.stdout + done.stderr).strip()
    if "No devices were found" in words:
        return ""
    if done.returncode:
        raise RuntimeError(f"{TOOL} {' '.join(arguments)} ended with {done.returncode}: {words}")
    return done.stdout


def gpus(num_ranks_here: int, needs_gpu: bool) -> Check:
    return judge_gpus(list_gpus(), num_ranks_here, needs_gpu=needs_gpu, driver_is_there=DRIVER_DEVICE.exists())


def list_gpus() -> list[Gpu]:
    return parse_gpus(ask(f"--query-gpu={','.join(FIELDS)}", "--format=csv,noheader,nounits"))


def parse_gpus(text: str) -> list[Gpu]:
    """Reads `nvidia-smi --query-gpu` of FIELDS, as CSV without header and units."""
    rows = [[cell.strip() for cell in row] for row in csv.reader(text.splitlines()) if row]
    return [
        Gpu(int(index), name, uuid, _number(total) or 0, _number(used) or 0, driver, _number(errors))
        for index, name, uuid, total, used, driver, errors in rows
    ]


def _number(text: str) -> int | None:
    return int(text) if text.isdigit() else None  # `[N/A]`, `[Not Supported]`


def judge_gpus(found: Sequence[Gpu], num_ranks_here: int, *, needs_gpu: bool, driver_is_there: bool) -> Check:
    """Compares the GPUs of a node with the ranks on it."""
    if not found and driver_is_there:
        return fail("a driver and no GPU that this job may use", "ask for them (SLURM: --gpus-per-node)")
    if not found and needs_gpu:
        return fail("none, and this model is not for CPUs", "run on GPU nodes, or model.size=tiny to try things out")
    if not found:
        return ok("none; training runs on CPUs, over gloo")
    kinds = Counter((gpu.name, gpu.total_megabytes) for gpu in found)
    models = ", ".join(f"{count} x {name} {megabytes / 1024:.0f} GiB" for (name, megabytes), count in kinds.items())
    facts = {"GPUs": models, "GPU driver": found[0].driver}
    value = f"{models}, driver {found[0].driver}"
    if num_ranks_here > len(found) == 1:
        fix = "fine where SLURM binds each task to a GPU of its own; otherwise start one rank per GPU"
        return warn(f"{value}, as seen by one of {num_ranks_here} ranks", fix, facts=facts)
    if num_ranks_here > len(found):
        fix = "start one rank per GPU (SLURM: --ntasks-per-node, torchrun: --nproc-per-node)"
        return fail(f"{value}, for {num_ranks_here} ranks", fix, facts=facts)
    if num_ranks_here < len(found):
        fix = f"start {len(found)} ranks on each node, or ask for fewer GPUs"
        return warn(f"{value}, {len(found) - num_ranks_here} of them for no rank", fix, facts=facts)
    return ok(value, facts=facts)


def gpu_health() -> Check:
    return judge_health(list_gpus())


def judge_health(found: Sequence[Gpu]) -> Check:
    broken = [gpu.number for gpu in found if gpu.uncorrected_errors]
    if broken:
        return fail(
            f"uncorrected memory errors on GPU {_join(broken)}",
            f"leave the node out (SLURM: --exclude) and tell its administrators; `{TOOL} -q -d ECC` shows more",
        )
    return ok("no uncorrected memory errors")


def gpu_users() -> Check:
    """Looks for other programs, which take memory and time."""
    apps = ask("--query-compute-apps=gpu_uuid,pid,process_name,used_memory", "--format=csv,noheader,nounits")
    return judge_users(list_gpus(), apps)


def judge_users(found: Sequence[Gpu], apps: str) -> Check:
    index_of = {gpu.uuid: gpu.number for gpu in found}
    rows = [[cell.strip() for cell in row] for row in csv.reader(apps.splitlines()) if row]
    users = [f"{name} (process {pid}) on GPU {index_of[uuid]}" for uuid, pid, name, _ in rows if uuid in index_of]
    used = [gpu.number for gpu in found if gpu.used_megabytes > USED_MEGABYTES]
    if not users and not used:
        return ok("nobody else works on them")
    what = ", ".join(users) or f"memory in use on GPU {_join(used)} by processes that are not visible here"
    return warn(what, "end them (an earlier run of yours?), or ask for whole nodes (SLURM: --exclusive)")


def topology() -> Check:
    return judge_topology(ask("topo", "-m"))


def judge_topology(text: str) -> Check:
    """Says how the GPUs of a node reach each other, by the matrix of `nvidia-smi topo -m`."""
    pairs = parse_topology(text)
    links = Counter(_link(cell) for cell in pairs)
    if not pairs:
        return ok("one GPU")
    value = ", ".join(f"{name} between {count} pairs" for name, count in links.most_common())
    facts = {"GPU topology": value}
    if 0 < links["NVLink"] < len(pairs):
        fix = "some links are down; leave the node out, or ask its administrators (nvidia-smi nvlink --status)"
        return warn(value, fix, facts=facts)
    return ok(value, facts=facts)


def parse_topology(text: str) -> list[str]:
    """Returns the cell of each pair of GPUs once, such as `NV18` or `SYS`."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    rows = [line.split() for line in plain.splitlines() if re.match(r"GPU\d+\s", line)]
    return [cell for number, row in enumerate(rows) for cell in row[number + 2 : len(rows) + 1]]


def _link(cell: str) -> str:
    return LINKS.get(cell.rstrip("0123456789"), cell)


def _join(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def gpu_checks(num_ranks_here: int, needs_gpu: bool) -> dict[str, Callable[[], Check]]:
    """Returns the checks of a node's GPUs; where there are none, one says so."""
    checks: dict[str, Callable[[], Check]] = {"GPUs": lambda: gpus(num_ranks_here, needs_gpu)}
    if shutil.which(TOOL):
        checks |= {"GPU health": gpu_health, "GPU users": gpu_users, "GPU links": topology}
    return checks
