"""Sources into a shard directory: parallel, resumable, and always the same bytes.

Workers build one *part* per source under `.parts/`; one process lays finished parts, in the order of the sources, into
shards. The order is a hash of the names, and a shard closes after the part that fills it: neither depends on the number
of workers, machines or interruptions. So the parts may be built by any number of processes on any number of machines,
each with a share of the sources (`build_parts`), and `build_shards` then finds them.

    shards/build.json          request and finished shards, rewritten after every shard
    shards/.parts/             finished parts that wait for their shard; removed at the end
    shards/rejects.csv         source_path,reason,detail
    shards/manifest.json       written last
"""

import logging
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from avff.building.journal import JOURNAL_NAME, save_journal
from avff.building.laying import Laying
from avff.building.locks import hold, one_at_a_time
from avff.building.parts import Part, Reject, Task
from avff.building.plan import BuildPlan, Share, require_parts
from avff.building.summary import BuildSummary, summarize
from avff.building.workers import run_in
from avff.data.shards import open_directory
from avff.progress import progress_bar

logger = logging.getLogger(__name__)


class PartsReport(NamedTuple):
    """What one share's builder did.

    Attributes:
        num_sources: of the share.
        num_built: now; the rest was there.
        rejects: among those built now.
    """

    share: Share
    num_sources: int
    num_built: int
    rejects: list[Reject]

    def as_text(self) -> str:
        there = self.num_sources - self.num_built
        text = f"share {self.share}: {self.num_sources} sources, {self.num_built} built now, {there} were there"
        return "\n".join([text, *(f"rejected: {r.source_path}: {r.reason}: {r.detail}" for r in self.rejects)])


def build_shards(
    plan: BuildPlan,
    *,
    num_workers: int = 0,
    num_shares: int = 0,
    arguments: dict[str, Any] | None = None,
    progress: bool = False,
) -> BuildSummary:
    """Builds a shard directory, continues an interrupted one, or finds it finished.

    Args:
        num_workers: processes; 0 builds in this one. No effect on the result.
        num_shares: of `build_parts`, which have to have built everything; 0 builds here what is missing.
        arguments: how the builder was called; recorded in the manifest.
        progress: on stderr.

    Raises:
        ConfigError: another build lies in the directory, or somebody else builds there.
        MediaError: no source gave a sample, or a worker died.
        ShardError: shares are not finished; names the sources that they lack.
    """
    complete = plan.is_complete()
    if complete:
        logger.info("%s: already built with these arguments, nothing to do", plan.output)
    else:
        with hold(plan.parts, shared=False):
            claim(plan)
            if num_shares:
                require_parts(plan, num_shares)
            laying = Laying(plan)
            with _built(laying.todo(), len(plan.tasks), 0 if num_shares else num_workers, progress) as parts:
                laying.lay(parts)
            laying.finish(arguments or {})
        # Not before the lock is let go: NFS keeps a file that is open. What is left of the folder does no harm.
        shutil.rmtree(plan.parts, ignore_errors=True)
    return summarize(open_directory(plan.output), already_complete=complete)


def build_parts(plan: BuildPlan, *, share: Share, num_workers: int = 0, progress: bool = False) -> PartsReport:
    """Builds a share of the parts, beside the builders of other shares; what is there already is left alone.

    Raises:
        ConfigError: another build lies in the directory, or a process lays shards there.
        MediaError: a worker died.
    """
    owned = [task for task in plan.tasks if share.owns(task.number)]
    if plan.is_complete():
        return PartsReport(share, len(owned), 0, [])
    with hold(plan.parts, shared=True):
        claim(plan)
        todo = [task for task in plan.remaining() if share.owns(task.number)]
        with _built(todo, len(owned), num_workers, progress) as parts:
            rejects = [reject for part in parts for reject in part.rejects]
    return PartsReport(share, len(owned), len(todo), rejects)


def claim(plan: BuildPlan) -> None:
    """Writes the request into a new directory; in one that has a request, refuses any other."""
    with one_at_a_time(plan.parts / "claim"):
        if not (plan.output / JOURNAL_NAME).is_file():
            save_journal(plan.output, plan.request, [])
        plan.finished_shards()


@contextmanager
def _built(todo: list[Task], total: int, num_workers: int, progress: bool) -> Iterator[Iterable[Part]]:
    """Gives the parts of tasks, in order, while workers build them."""
    done = total - len(todo)
    with (
        run_in(num_workers) as run_all,
        progress_bar(run_all(todo), total=total, initial=done, unit="file", description="build", shown=progress) as bar,
    ):
        yield bar
