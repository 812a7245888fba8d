#!/usr/bin/env python
"""Shows what a config's training plan holds, how well it shuffles, and whether it suits the ranks that will read it."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from avff.config import Config, load_config
from avff.data.plan import Plan, build_plan
from avff.data.plan_layout import (
    layout_warnings,
    samples_per_shard,
    working_batches,
    working_micro_batches,
    working_ranks,
)
from avff.data.selection import open_directories
from avff.data.shuffle_quality import Statistic, shuffle_quality
from avff.errors import AvffError, ConfigError

EPILOG = """\
examples:
  python tools/inspect_plan.py configs/stage1_kinetics.yaml --ranks 8
  python tools/inspect_plan.py configs/stage2_faces.yaml data.shuffle_window_shards=16 --ranks 16 --workers 6
  python tools/inspect_plan.py configs/stage1_kinetics.yaml data.num_runs=1 --explain

The plan is the order of clips: shards are shuffled, samples permuted inside windows of data.shuffle_window_shards
shards, and the line is read at data.num_runs places at once. Ranks and workers have no effect on it. Each statistic of
the shuffle stands beside what a perfect shuffle of the same epoch gives; --explain says what it counts. Only indices
are read, so this takes seconds where opening the tars would take hours.

exit code: 0 well shuffled, and the batch divides over --ranks; 1 poorly shuffled, or it does not divide; 2 the plan
cannot be made.
"""


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    try:
        config = load_config(arguments.config, arguments.overrides)
        plan = build_plan(config, open_directories(config.data.train), open_directories(config.data.validation))
        num_workers = config.data.num_workers if arguments.workers is None else arguments.workers
        print("\n".join(contents(plan, config)), end="\n\n")
        statistics = shuffle_quality(plan, arguments.epoch)
        print("\n".join(shuffle_table(statistics, arguments.epoch, explain=arguments.explain)), end="\n\n")
        problems = [*shuffle_problems(statistics), *batch_problems(config, arguments.ranks)]
        print("\n".join(topology(config, arguments.ranks)))
        for warning in layout_warnings(plan, config, num_ranks=arguments.ranks, num_workers=num_workers):
            print(f"warning: {warning}")
        for problem in problems:
            print(f"problem: {problem}")
    except AvffError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 1 if problems else 0


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", type=Path, metavar="CONFIG", help="YAML file, see configs/")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="config overrides")
    parser.add_argument("--ranks", type=_positive, default=1, metavar="N", help="training processes (default 1)")
    parser.add_argument("--workers", type=int, metavar="N", help="loader processes per rank (default data.num_workers)")
    parser.add_argument("--epoch", type=int, default=0, metavar="N", help="epoch to look at (default 0, the first)")
    parser.add_argument("--explain", action="store_true", help="say what each statistic of the shuffle counts")
    return parser.parse_intermixed_args(argv)


def _positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return int(text)


def contents(plan: Plan, config: Config) -> Iterator[str]:
    """Yields lines about what is read and how often."""
    size_S, batch = samples_per_shard(plan), config.engine.global_batch_size
    steps_per_epoch, repeats = plan.num_samples / plan.samples_per_step, plan.num_repeats
    each = f"{batch} clips each, of {plan.samples_per_step} samples read once" if repeats > 1 else f"{batch} clips each"
    dropped = ", ".join(f"{count} by {reason}" for reason, count in sorted(plan.dropped.items())) or "none"
    yield f"plan {plan.hash[:12]} of {', '.join(source.path for source in config.data.train)}"
    yield f"  samples   {len(plan.samples)}, read as {plan.num_samples * repeats} clips per epoch; left out: {dropped}"
    yield (
        f"  shards    {len(size_S)} with {size_S.min()} / {np.median(size_S):g} / {size_S.max()} of the samples "
        "(fewest / median / most)"
    )
    yield f"  steps     {each}, {steps_per_epoch:.1f} per epoch"
    yield f"  the run   {config.optim.num_steps} steps, {config.optim.num_steps / steps_per_epoch:.2f} epochs"


def shuffle_table(statistics: list[Statistic], epoch: int, *, explain: bool) -> Iterator[str]:
    """Yields the table of shuffle statistics, one line each, two with explanations."""
    yield f"{f'shuffle of epoch {epoch}':36}{'plan':>8}{'perfect':>9}{'limit':>8}"
    for statistic in statistics:
        verdict = "POOR" if statistic.is_poor else "ok" if statistic.limit < 1 else "cannot be poor here"
        limit = f"{min(1.0, statistic.limit):8.3f}"
        yield f"  {statistic.name:34}{statistic.value:8.3f}{statistic.perfect:9.3f}{limit}  {verdict}"
        if explain:
            yield f"    {statistic.meaning}"


def shuffle_problems(statistics: list[Statistic]) -> Iterator[str]:
    for statistic in statistics:
        if statistic.is_poor:
            yield (
                f"poorly shuffled: {statistic.name} is {statistic.value:.3f}, perfect is {statistic.perfect:.3f} "
                f"({statistic.meaning}); raise data.shuffle_window_shards or data.num_runs, or build more, smaller shards"
            )


def batch_problems(config: Config, num_ranks: int) -> Iterator[str]:
    try:
        config.accumulation_steps(num_ranks)
    except ConfigError as error:
        yield str(error)


def topology(config: Config, num_ranks: int) -> Iterator[str]:
    """Yields which ranks and batches divide."""

    def listed(numbers: list[int]) -> str:
        return (
            ", ".join(map(str, numbers)) or f"none, with groups of {config.group_size} clips shared evenly by all ranks"
        )

    engine = config.engine
    yield f"batch of {engine.global_batch_size}, micro batches of {engine.micro_batch_size}; what divides:"
    yield f"  ranks for both                             {listed(working_ranks(config))}"
    yield f"  engine.micro_batch_size for {num_ranks:3} ranks      {listed(working_micro_batches(config, num_ranks))}"
    yield f"  engine.global_batch_size for {num_ranks:3} ranks     {listed(working_batches(config, num_ranks))}"


if __name__ == "__main__":
    sys.exit(main())
