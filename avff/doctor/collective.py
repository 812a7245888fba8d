"""All-reduce between all ranks, timed, in a child process of each rank: what hangs or crashes there ends nothing else.

    parent of each rank (avff.doctor.run)  --- starts, waits, kills --->  python -m avff.doctor.collective
                                           <-- one line of JSON (Result) --

The children meet at the parents' store, and leave there how far they have come.
"""

import argparse
import json
import logging
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import avff
from avff import distributed
from avff.doctor import exchange
from avff.doctor.exchange import NEWS, Exchange
from avff.doctor.nodes import ranks_in_words

SIZES_BYTES = (4 * 2**10, 4 * 2**20, 64 * 2**20, 512 * 2**20)
LINK_BYTES = 16 * 2**20
ROUNDS = 5
SLOW_SECONDS = 0.2
"""A size that takes longer is the last one."""
CPU_LIMIT_BYTES = 64 * 2**20
MATRIX_SIDE = 8192
LAST_LINES = 3


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one rank measured.

    Attributes:
        stage: how far it came: `start`, `join`, `reduce`, `links`, `done`.
        error: why not further; empty otherwise.
        seconds: from its start to its end or error; of two ranks, the one that failed later mostly waited for the other.
        backend: nccl or gloo.
        device: the GPU's name and number, or `cpu`.
        gpu_id: tells GPUs of one node apart; empty for CPUs.
        teraflops: of bf16 matrix products on it; 0 for CPUs.
        reduces: (bytes, seconds) of an all-reduce.
        links: (first rank of the sending node, bytes per second) of what this rank received.
        transport: what NCCL says that it uses between nodes.
    """

    stage: str = "start"
    error: str = ""
    seconds: float = 0.0
    backend: str = ""
    device: str = ""
    gpu_id: str = ""
    teraflops: float = 0.0
    reduces: list[tuple[int, float]] = field(default_factory=list)
    links: list[tuple[int, float]] = field(default_factory=list)
    transport: str = ""


# ------------------------------------------------------------------------------------------- parent


def measure(meeting: Exchange, first_ranks: Sequence[int], limit_seconds: float) -> Result:
    """Starts this rank's child and returns what it says, or how it ended."""
    command = [
        sys.executable,
        "-m",
        "avff.doctor.collective",
        "--address",
        meeting.address,
        "--port",
        str(meeting.port),
    ]
    command += ["--first-ranks", *map(str, first_ranks), "--limit-seconds", str(limit_seconds)]
    # The same avff as here, wherever this process found it.
    path = os.pathsep.join([str(Path(avff.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    environment = {"NCCL_DEBUG": "INFO", **os.environ, "PYTHONPATH": path, "TORCH_CPP_LOG_LEVEL": "FATAL"}
    meeting.put(NEWS, "start")
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=2 * limit_seconds, check=False
        )
    except subprocess.TimeoutExpired:
        error, waited = f"no answer after {2 * limit_seconds:g} s", 2 * limit_seconds
        return Result(stage=meeting.news_of(meeting.rank), error=error, seconds=waited)
    return read_result(done.returncode, done.stdout, done.stderr, meeting.news_of(meeting.rank))


def read_result(code: int, output: str, errors: str, stage: str) -> Result:
    """Returns what a child printed last, with the network that NCCL named before it; or how it crashed in a stage."""
    lines = output.splitlines()
    if code or not lines or not lines[-1].startswith("{"):
        words = " / ".join((errors.strip() or output.strip()).splitlines()[-LAST_LINES:])
        return Result(stage=stage, error=f"the process ended with {code}: {words}")
    transport = next((line.partition("Using network ")[2].strip() for line in lines if "Using network " in line), "")
    return Result(**{**json.loads(lines[-1]), "transport": transport})


# ------------------------------------------------------------------------------------------- child


def main() -> None:
    parser = argparse.ArgumentParser(description="One rank of avff doctor's all-reduce; avff doctor starts it.")
    parser.add_argument("--address", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--first-ranks", type=int, nargs="+", required=True)
    parser.add_argument("--limit-seconds", type=float, required=True)
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    began = time.monotonic()
    stage, found = "start", dict[str, Any]()
    try:
        meeting = exchange.join(
            options.address,
            options.port,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
            limit_seconds=options.limit_seconds,
            listens=False,
        )
        for stage, values in _stages(meeting, options.first_ranks, options.limit_seconds):
            meeting.put(NEWS, stage)
            found |= values
        error = ""
    except Exception as problem:  # noqa: BLE001  whatever it is, the parent reports it
        error = f"{type(problem).__name__}: {str(problem).splitlines()[0] if str(problem) else ''}"
    result = Result(stage=stage, error=error, seconds=time.monotonic() - began, **found)
    print(json.dumps(asdict(result)), flush=True)  # noqa: T201
    os._exit(0)  # a broken group can hang the interpreter's own end


def _stages(
    meeting: Exchange, first_ranks: Sequence[int], limit_seconds: float
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the name of the stage that begins and what the stage before found."""
    device = _device()
    described = _describe(device)
    yield "join", described
    _join(meeting, device, limit_seconds)
    yield "reduce", {"teraflops": _teraflops(device)}
    reduces = _time_reduces(device)
    yield "links", {"reduces": reduces}
    links = _time_links(device, first_ranks)
    _finish(device)  # so that none leaves while another still listens to it
    yield "done", {"links": links}


def _device() -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", distributed.local_rank() % torch.cuda.device_count())  # as avff.engine.process
    torch.cuda.set_device(device)
    return device


def _describe(device: torch.device) -> dict[str, str]:
    if device.type == "cpu":
        return {"backend": "gloo", "device": "cpu"}
    properties = torch.cuda.get_device_properties(device)
    return {"backend": "nccl", "device": f"{properties.name} {device.index}", "gpu_id": str(properties.uuid)}


def _join(meeting: Exchange, device: torch.device, limit_seconds: float) -> None:
    """Joins the group once all ranks are known to use the same kind of device, as others would wait for ever."""
    meeting.put("device", device.type)
    kinds = meeting.collect("device", range(meeting.world_size), limit_seconds)
    if missing := sorted(set(range(meeting.world_size)) - kinds.keys()):
        raise RuntimeError(f"{ranks_in_words(missing)} did not start")
    on_cpu = [rank for rank, kind in kinds.items() if kind == "cpu"]
    if 0 < len(on_cpu) < len(kinds):
        raise RuntimeError(f"{ranks_in_words(on_cpu)} sees no GPU, the others do")
    dist.init_process_group(
        "gloo" if on_cpu else "nccl",
        store=dist.PrefixStore("group", meeting.store),
        rank=meeting.rank,
        world_size=meeting.world_size,
        timeout=timedelta(seconds=limit_seconds),
        device_id=None if on_cpu else device,
    )
    _finish(device)


def _teraflops(device: torch.device) -> float:
    """Returns what a GPU reaches in bf16 matrix products; a hot or throttled one stands out."""
    if device.type == "cpu":
        return 0.0
    matrix = torch.randn(MATRIX_SIDE, MATRIX_SIDE, device=device, dtype=torch.bfloat16)
    seconds = [_seconds(device, lambda: matrix @ matrix) for _ in range(2 * ROUNDS)]
    return 2 * MATRIX_SIDE**3 / statistics.median(seconds) / 1e12


def _time_reduces(device: torch.device) -> list[tuple[int, float]]:
    """Returns (bytes, seconds), smallest first; ranks agree by the numbers themselves on when to stop.

    Raises:
        RuntimeError: a sum is wrong.
    """
    timed: list[tuple[int, float]] = []
    for size in SIZES_BYTES:
        if device.type == "cpu" and size > CPU_LIMIT_BYTES:
            break
        values = torch.full((size // 4,), float(dist.get_rank() + 1), device=device)
        dist.all_reduce(values)
        expected = dist.get_world_size() * (dist.get_world_size() + 1) / 2
        if not bool((values == expected).all()):
            raise RuntimeError(f"an all-reduce of {size} bytes gave {values[0].item()} instead of {expected}")
        values.zero_()
        reduce = partial(dist.all_reduce, values)
        measured = statistics.median(_seconds(device, reduce) for _ in range(ROUNDS))
        seconds = torch.tensor(measured, device=device)
        dist.all_reduce(seconds, op=dist.ReduceOp.MAX)
        timed.append((size, seconds.item()))
        if seconds.item() > SLOW_SECONDS:
            break
    return timed


def _time_links(device: torch.device, first_ranks: Sequence[int]) -> list[tuple[int, float]]:
    """Sends from each node to the next one, one link at a time; returns what came to this rank."""
    received = []
    values = torch.zeros(LINK_BYTES // 4, device=device)
    for number, source in enumerate(first_ranks):
        target = first_ranks[(number + 1) % len(first_ranks)]
        if source == target:
            break
        _send(values, source, target)  # the first time, a connection is made
        _finish(device)
        seconds = _seconds(device, partial(_send, values, source, target))
        if dist.get_rank() == target:
            received.append((source, LINK_BYTES / seconds))
    return received


def _send(values: torch.Tensor, source: int, target: int) -> None:
    if dist.get_rank() == source:
        dist.send(values, target)
    elif dist.get_rank() == target:
        dist.recv(values, source)


def _seconds(device: torch.device, act: Callable[[], Any]) -> float:
    """Times an action that all ranks begin together."""
    _finish(device)
    before = time.perf_counter()
    act()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - before


def _finish(device: torch.device) -> None:
    dist.barrier()
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
