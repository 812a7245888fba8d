"""Builds a shard directory from raw media.

    python tools/make_shards.py --input videos/ --output shards/kinetics --mode frame --is-fake 0
    python tools/make_shards.py --input metadata.csv --output shards/faces --profile evidence --num-workers 16

The input is a folder, one file, or a CSV; `video_name,target` is enough, and avff/building/tables.py lists the other
columns. Run the same command again after an interruption: what is finished is kept, and the result is the same.

Several machines that share the folder build it together, each with a share; then one lays their parts into shards:

    python tools/make_shards.py ... --share 0/2          on one
    python tools/make_shards.py ... --share 1/2          on another
    python tools/make_shards.py ... --merge-shares 2     when both are through

launch/make_shards.py does so with SLURM. A signal (TERM, USR1, USR2) ends it with code 75: run the same command again.
"""

import argparse
import logging
import sys
import time

from avff.building.arguments import add_options, num_workers, read_plan
from avff.building.build import build_parts, build_shards
from avff.building.plan import parse_share
from avff.building.summary import rejects_table
from avff.building.workers import Stopped, stopping_on_signals
from avff.errors import INTERRUPTED_EXIT_CODE, PREEMPTED_EXIT_CODE, REFUSED_EXIT_CODE, AvffError


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    together = parser.add_argument_group("together with other machines").add_mutually_exclusive_group()
    together.add_argument(
        "--share", metavar="I/N", help="build this share of the parts only; the shares of 2 are 0/2, 1/2"
    )
    together.add_argument(
        "--merge-shares", type=int, default=0, metavar="N", help="lay the parts of N shares into shards; build none"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        with stopping_on_signals():
            print(run(arguments))
    except AvffError as error:
        print(f"error: {error}", file=sys.stderr)
        return REFUSED_EXIT_CODE
    except OSError as error:  # a full disk, a lost mount
        print(f"error: {error}; finished sources are kept, run the same command again", file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        how = f"stopped by {error}" if isinstance(error, Stopped) else "interrupted"
        print(f"{how}; finished sources are kept, run the same command again", file=sys.stderr)
        return PREEMPTED_EXIT_CODE if isinstance(error, Stopped) else INTERRUPTED_EXIT_CODE
    return 0


def run(arguments: argparse.Namespace) -> str:
    """Builds what the command line asks for and returns the summary."""
    started = time.monotonic()
    share = parse_share(arguments.share) if arguments.share else None
    plan, description = read_plan(arguments)
    common = {"num_workers": num_workers(arguments), "progress": not arguments.quiet}
    if share:
        lines = [build_parts(plan, share=share, **common).as_text()]
    else:
        summary = build_shards(plan, num_shares=arguments.merge_shares, arguments=description, **common)
        lines = [f"{plan.output}: already built with these arguments"] if summary.already_complete else []
        if dropped := description["num_straddling_dropped"]:
            lines.append(f"{dropped} clips lie between two splits and were left out")
        lines += [summary.as_text(), *rejects_table(plan.output)]
    return "\n".join([*lines, f"took {time.monotonic() - started:.1f} s"])


if __name__ == "__main__":
    sys.exit(main())
