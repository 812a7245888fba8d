#!/usr/bin/env python
"""Measures what avff promises about time; prints a table and writes JSON with the machine and the versions.

What is compared is measured in turns within one run, so that ratios hold on a machine that others use as well.
"""

import argparse
import ast
import difflib
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

RAW = argparse.RawDescriptionHelpFormatter

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

Reports of step, loader and checkpoint are what planning takes:
  python tools/simulate.py configs/stage1_kinetics.yaml --cluster configs/clusters/h200.yaml \\
      --measured runs/bench/step.json runs/bench/loader.json runs/bench/checkpoint.json
or, after tools/gpu_report.sh FOLDER, FOLDER/stage1/step.json FOLDER/loader/loader.json FOLDER/checkpoint/checkpoint.json
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
    name, *words = _with_benchmark(sys.argv[1:] if argv is None else argv)
    module = importlib.import_module(BENCHMARKS[name])
    parser = argparse.ArgumentParser(prog=f"bench.py {name}", description=module.__doc__, formatter_class=RAW)
    module.add_arguments(parser)
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path("runs/bench"),
        help=f"where to write {name}.json and what is generated (default runs/bench)",
    )
    parser.set_defaults(run=module.run)
    return parser.parse_args(words)


def _with_benchmark(words: list[str]) -> list[str]:
    """Returns the words, the first of which is a benchmark; only that one's module is imported, which takes seconds."""
    benchmarks = "\n".join(f"  {name:<12}{_summary(path)}" for name, path in BENCHMARKS.items())
    parser = argparse.ArgumentParser(
        prog="bench.py",
        usage="%(prog)s BENCHMARK [options]",
        description=f"{__doc__}\nbenchmarks, each with a --help of its own:\n{benchmarks}",
        epilog=EPILOG,
        formatter_class=RAW,
    )
    if not words or words[0].startswith("-"):
        parser.parse_args(words[:1])
        parser.error(f"no benchmark is named; there are {', '.join(BENCHMARKS)}")
    if words[0] not in BENCHMARKS:
        near = difflib.get_close_matches(words[0], BENCHMARKS, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else ""
        parser.error(f"no benchmark {words[0]!r}; there are {', '.join(BENCHMARKS)}{hint}")
    return words


def _summary(path: str) -> str:
    """Returns the first line of a module's docstring without its title."""
    source = Path(__file__).parents[1].joinpath(*path.split(".")).with_suffix(".py").read_text()
    docstring = ast.get_docstring(ast.parse(source))
    assert docstring, f"{path} needs a docstring, its help"
    return docstring.split("\n", 1)[0].partition(": ")[2]


if __name__ == "__main__":
    sys.exit(main())
