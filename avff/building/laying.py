"""Parts into shards, in order: a shard closes after the part that fills it, whoever built the parts and when."""

import csv
import io
import shutil
from collections import Counter
from collections.abc import Iterable
from typing import Any

from avff.building.journal import FinishedShard, is_whole, save_journal
from avff.building.parts import Part, Reject, Task, read_part, remove_part
from avff.building.plan import BuildPlan
from avff.building.summary import REJECTS_NAME
from avff.data.shards import read_shard_info, write_manifest, write_shard
from avff.errors import MediaError
from avff.files import write_durably
from avff.strict_yaml import to_dict


class Laying:
    """The shards of a directory while they are laid: those that are whole, and the one being filled."""

    def __init__(self, plan: BuildPlan):
        finished = plan.finished_shards()
        self.plan = plan
        self.shards = {shard.first: shard for shard in finished if is_whole(plan.output, shard)}
        # A lost shard is rebuilt under its name from its own sources.
        self._lost = {shard.first: shard for shard in finished if shard.first not in self.shards}
        self._next_shard = sum(bool(shard.name) for shard in finished)

    def todo(self) -> list[Task]:
        """Returns the sources that are not in a whole shard, in order."""
        done = {number for shard in self.shards.values() for number in range(shard.first, shard.stop)}
        return [task for task in self.plan.tasks if task.number not in done]

    def lay(self, parts: Iterable[Part]) -> None:
        """Takes the parts of `todo()`, in its order, and writes each shard as soon as its last part is there."""
        pending: list[tuple[Task, Part]] = []
        for task, part in zip(self.todo(), parts, strict=True):
            pending.append((task, part))
            if self._closes(pending):
                self._close(pending)
                pending = []

    def _closes(self, pending: list[tuple[Task, Part]]) -> bool:
        first, last = pending[0][0].number, pending[-1][0].number
        if lost := self._lost.get(first):
            return last + 1 == lost.stop
        is_last = last + 1 == len(self.plan.tasks)
        return is_last or sum(part.num_bytes for _, part in pending) >= self.plan.shard_bytes

    def _close(self, pending: list[tuple[Task, Part]]) -> None:
        first, stop = pending[0][0].number, pending[-1][0].number + 1
        rejects = [reject for _, part in pending for reject in part.rejects]
        shard = FinishedShard(self._name(first, any(part.num_bytes for _, part in pending)), first, stop, rejects)
        if shard.name:
            samples = (sample for task, _ in pending for sample in read_part(task.directory, task.number))
            write_shard(self.plan.output, shard.name, samples)
        self.shards[first] = shard
        save_journal(self.plan.output, self.plan.request, list({**self._lost, **self.shards}.values()))
        for task, _ in pending:
            remove_part(task.directory, task.number)

    def _name(self, first: int, has_samples: bool) -> str:
        if lost := self._lost.get(first):
            return lost.name
        if not has_samples:
            return ""
        self._next_shard += 1
        return f"shard-{self._next_shard - 1:06d}.tar"

    def finish(self, arguments: dict[str, Any]) -> None:
        """Writes the files that describe the whole build, the manifest last.

        Raises:
            MediaError: no source gave a sample; the directory is removed.
        """
        plan = self.plan
        rejects = [reject for _, shard in sorted(self.shards.items()) for reject in shard.rejects]
        infos = [read_shard_info(plan.output, shard.name) for shard in self.shards.values() if shard.name]
        if not infos:
            shutil.rmtree(plan.output, ignore_errors=True)  # NFS keeps the lock until it is let go
            reasons = "; ".join(f"{reject.source_path}: {reject.reason}" for reject in rejects[:5])
            raise MediaError(f"none of {len(plan.tasks)} sources gave a sample: {reasons}", reason="NO_SAMPLE")
        table = io.StringIO()
        writer = csv.writer(table, lineterminator="\n")
        writer.writerows([Reject._fields, *rejects])
        write_durably(plan.output / REJECTS_NAME, table.getvalue().encode())
        counts = dict(sorted(Counter(reject.reason for reject in rejects).items()))
        values = {**arguments, **plan.request}
        write_manifest(plan.output, infos, build=to_dict(plan.config), arguments=values, rejects=counts)
