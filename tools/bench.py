#!/usr/bin/env python
"""Measures what avff promises about time; prints a table and writes JSON with the machine and the versions.

What is compared is measured in turns within one run, so that ratios hold on a machine that others use as well.
"""

import argparse
import importlib
import sys
from pathlib import Path

from avff.errors import AvffError

BENCHMARKS = {
    "seek": "avff.bench.seek",
    "checkpoint": "avff.bench.saves",
    "step": "avff.bench.step",
    "loader": "avff.bench.loader",
    "media": "avff.bench.media",
    "predict": "avff.bench.predict",
}
"""Subcommand -> module with `add_arguments(parser)` and `run(arguments)`, which returns the table; its docstring is the help."""

EPILOG = """\
examples:
  python tools/bench.py seek
  python tools/bench.py checkpoint --parameters 100_000_000 --folder /scratch/bench
  python tools/bench.py loader --input videos/ --workers 0 4 8 --clips 512
  python tools/bench.py loader --memory --steps 10000
  python tools/bench.py step --size base --against eager
  python tools/bench.py media --input videos/ --profiles pretrain
  python tools/bench.py predict --input videos/ --size base --workers 8
  python tools/bench.py seek --config configs/stage1_kinetics.yaml --steps 100 100000
"""


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    try:
        print(arguments.run(arguments))
    except AvffError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, epilog=EPILOG, formatter_class=raw)
    benchmarks = parser.add_subparsers(required=True, metavar="BENCHMARK")
    for name, path in BENCHMARKS.items():
        module = importlib.import_module(path)
        assert module.__doc__, f"{path} needs a docstring, the help of {name}"
        summary = module.__doc__.split("\n", 1)[0].partition(": ")[2]
        benchmark = benchmarks.add_parser(name, help=summary, description=module.__doc__, formatter_class=raw)
        module.add_arguments(benchmark)
        benchmark.add_argument(
            "--folder",
            type=Path,
            default=Path("runs/bench"),
            help=f"for what it generates and for {name}.json (default runs/bench)",
        )
        benchmark.set_defaults(run=module.run)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
