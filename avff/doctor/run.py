"""`avff doctor`: ranks meet, nodes check themselves, all add up tensors; rank 0 compares and reports.

    every rank          hello ---------------------> rank 0 knows who is there, and on which node
    first of each node  its clock, its checks -----> rank 0
    every rank          all-reduce, links ---------> rank 0

Nothing here waits for ever: a rank that does not come and a check that does not end are lines of the report.
"""

import logging
import socket
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avff import distributed
from avff.config import Config
from avff.doctor import compare, machine, needs, run_folder
from avff.doctor.check import Check, CheckFunction, Status, fail, ok, run_check
from avff.doctor.node_checks import folder_checks, node_checks
from avff.doctor.nodes import Node, counted, introduce, nodes_of
from avff.doctor.report import Report

if TYPE_CHECKING:
    from avff.doctor.exchange import Exchange

logger = logging.getLogger(__name__)

LIMIT_SECONDS = 60.0
"""Longest that one check may take, and that a rank may be without news."""
MANY_LIMITS = 40
"""How many limits a rank waits for rank 0, which waits for the slowest node; should rank 0 die, the wait ends at once."""


def diagnose(config: Config | None, *, limit_seconds: float = LIMIT_SECONDS) -> Report | None:
    """Checks this machine or, under a launcher, every node.

    Args:
        config: what is to be trained; without one, what depends on it is left out.

    Returns:
        The report on rank 0; None on the other ranks, unless they cannot reach it: then one about their own machine.
    """
    from avff.doctor.exchange import connect

    try:
        examination = _Examination(config, connect(limit_seconds), limit_seconds)
        if distributed.is_main():
            return examination.lead()
        examination.follow()
        return None
    except RuntimeError as error:  # torch.distributed.DistError is one
        return _examine_alone(config, error, limit_seconds)


def _examine_alone(config: Config | None, error: RuntimeError, limit_seconds: float) -> Report:
    """Returns what a machine can say by itself, and why the ranks did not meet."""
    checks = node_checks(config, number=0, num_nodes=1, num_ranks_here=1, world_size=1, main_address="")
    answers = {name: run_check(function, limit_seconds) for name, function in checks.items()}
    answers["meeting"] = fail(
        next(iter(str(error).splitlines()), type(error).__name__),
        "MASTER_ADDR and MASTER_PORT have to name rank 0's node, and a port that is free there and open to all nodes",
    )
    host = socket.gethostname()
    return Report(f"avff doctor: rank {distributed.rank()} on {host}, alone", {host: answers}, {})


class _Examination:
    def __init__(self, config: Config | None, meeting: "Exchange", limit_seconds: float):
        self.config = config
        self.meeting = meeting
        self.limit_seconds = limit_seconds
        self.probe: Path | None = None

    # --------------------------------------------------------------------------------------- rank 0

    def lead(self) -> Report:
        """Does rank 0's part and returns the report."""
        meeting, world_size = self.meeting, self.meeting.world_size
        logger.info("avff doctor: waiting for %s", counted(world_size, "rank"))
        meeting.put("hello", introduce())
        hellos = meeting.collect("hello", range(world_size), self.limit_seconds)
        meeting.publish("hellos", hellos)
        nodes = nodes_of(hellos)
        together = {"ranks": compare.attendance(list(hellos), world_size)}
        if self.config is not None:
            together["batch"] = compare.batch(self.config, world_size)
        if len(nodes) > 1:
            together["clocks"] = compare.clocks(self._clock_offsets(nodes))
        logger.info("avff doctor: checking %s", counted(len(nodes), "node"))
        per_node = self._lead_checks(nodes, together)
        is_complete = len(hellos) == world_size
        meeting.publish("measure", is_complete)
        if is_complete:
            logger.info("avff doctor: measuring between %s", counted(world_size, "rank"))
            together |= self._lead_measuring(nodes)
        return Report(
            f"avff doctor: {counted(world_size, 'rank')} on {counted(len(nodes), 'node')}", per_node, together
        )

    def _clock_offsets(self, nodes: list[Node]) -> dict[str, float]:
        """Returns each node's clock less this one's, all read when the same message came."""
        first_ranks = [node.first_rank for node in nodes]
        self.meeting.put("ready", True)
        self.meeting.collect("ready", first_ranks, self.limit_seconds)
        self.meeting.publish("tick", True)
        self.meeting.put("clock", time.time())
        clocks = self.meeting.collect("clock", first_ranks, self.limit_seconds)
        return {node.name: clocks[node.first_rank] - clocks[0] for node in nodes if node.first_rank in clocks}

    def _lead_checks(self, nodes: list[Node], together: dict[str, Check]) -> dict[str, dict[str, Check]]:
        """Checks this node and collects the others' answers; returns them by node."""
        with ExitStack() as stack:
            opened = self._open_probe(stack)
            self.meeting.publish("probe", str(self.probe) if self.probe else "")
            answers = {nodes[0].name: self._check_node(nodes[0], nodes) | opened}
            first_ranks = [node.first_rank for node in nodes[1:]]
            reported = self.meeting.collect("checks", first_ranks, self.limit_seconds + run_folder.VISIBLE_SECONDS)
            for node in nodes[1:]:
                answers[node.name] = self._received(node, reported.get(node.first_rank))
            if self.probe and len(nodes) > 1:
                together["run folder, seen"] = self._look_for_tokens(nodes, self.probe)
        for node in nodes:
            answers[node.name]["cores"] = compare.cpus(node, self.config.data.num_workers if self.config else 0)
        if len(nodes) > 1:
            together["all alike"] = compare.agreement({name: _facts(checks) for name, checks in answers.items()})
        return answers

    def _open_probe(self, stack: ExitStack) -> dict[str, Check]:
        """Makes the probe of the run folder, if there is a config; returns the answer where it cannot be made."""
        if self.config is None:
            return {}
        run_dir = self.config.run_dir

        def open_probe() -> Check:
            self.probe = stack.enter_context(run_folder.probe(run_dir))
            return ok("")

        answer = run_check(open_probe, self.limit_seconds)
        return {} if answer.status is Status.OK else {"run folder": answer}

    def _received(self, node: Node, values: Mapping[str, Any] | None) -> dict[str, Check]:
        if values is not None:
            return {name: Check.from_dict(each) for name, each in values.items()}
        last = self.meeting.news_of(node.first_rank) or "hello"
        what = f"none came from rank {node.first_rank}, which was last heard of at {last!r}"
        return {"answers": fail(what, "look at the output of this node's processes, and whether the node still works")}

    def _look_for_tokens(self, nodes: list[Node], probe: Path) -> Check:
        missing = run_folder.missing_tokens(probe, [node.first_rank for node in nodes])
        return compare.shared_from_all([node.name for node in nodes if node.first_rank in missing], str(probe.parent))

    def _lead_measuring(self, nodes: list[Node]) -> dict[str, Check]:
        from avff.doctor import judge_collective
        from avff.doctor.collective import Result

        ranks = [rank for node in nodes for rank in node.ranks]
        self._measure(nodes)
        values = self.meeting.collect("measured", ranks, 3 * self.limit_seconds)
        results = {rank: Result(**values[rank]) if rank in values else Result(error="no answer") for rank in ranks}

        def judge() -> Check:
            gradient_bytes = needs.gradient_bytes(self.config) if self.config else 0
            fabric = machine.has_infiniband()
            return judge_collective.judge_all_reduce(results, nodes, gradient_bytes, has_fabric=fabric)

        answers = {"all-reduce": run_check(judge, self.limit_seconds)}
        if answers["all-reduce"].status is not Status.FAIL and len(nodes) > 1:
            answers["links"] = judge_collective.judge_links(results, nodes)
        return answers | {"devices": judge_collective.judge_devices(results, nodes)}

    # --------------------------------------------------------------------------------------- every rank

    def follow(self) -> None:
        """Does the part of another rank than 0."""
        meeting = self.meeting
        meeting.put("hello", introduce())
        patience = MANY_LIMITS * self.limit_seconds
        hellos = {int(rank): hello for rank, hello in meeting.await_published("hellos", patience).items()}
        if meeting.rank not in hellos:
            raise RuntimeError(f"rank {meeting.rank} came more than {self.limit_seconds:g} s after rank 0, too late")
        nodes = nodes_of(hellos)
        node = next(node for node in nodes if meeting.rank in node.ranks)
        if meeting.rank == node.first_rank:
            meeting.put("ready", True)
            meeting.await_published("tick", patience)
            meeting.put("clock", time.time())
            self.probe = Path(path) if (path := meeting.await_published("probe", patience)) else None
            answers = self._check_node(node, nodes)
            meeting.put("checks", {name: check.to_dict() for name, check in answers.items()})
        if meeting.await_published("measure", patience):
            self._measure(nodes)

    def _check_node(self, node: Node, nodes: list[Node]) -> dict[str, Check]:
        """Returns this node's answers by name; says before each check what comes, in case it never ends."""
        meeting = self.meeting
        checks = node_checks(
            self.config,
            number=node.number,
            num_nodes=len(nodes),
            num_ranks_here=len(node.ranks),
            world_size=meeting.world_size,
            main_address=meeting.address if distributed.is_launched() else "",
        )
        answers = {name: self._check(name, function) for name, function in checks.items()}
        if self.probe is None or self.config is None:
            return answers
        answers["run folder"] = self._check("run folder", partial(run_folder.shared_folder, self.probe, meeting.rank))
        if answers["run folder"].status is Status.OK:
            in_folder = folder_checks(self.probe, meeting.rank, self.config, len(nodes))
            answers |= {name: self._check(name, function) for name, function in in_folder.items()}
        return answers

    def _check(self, name: str, function: CheckFunction) -> Check:
        from avff.doctor.exchange import NEWS

        self.meeting.put(NEWS, name)
        return run_check(function, self.limit_seconds)

    def _measure(self, nodes: list[Node]) -> None:
        from avff.doctor.collective import measure

        result = measure(self.meeting, [node.first_rank for node in nodes], self.limit_seconds)
        self.meeting.put("measured", asdict(result))


def _facts(checks: Mapping[str, Check]) -> dict[str, str]:
    return {name: value for check in checks.values() for name, value in check.facts.items()}
