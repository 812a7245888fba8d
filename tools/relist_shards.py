#!/usr/bin/env python
"""Makes a shard directory of the shards that are there now, after some were taken out or put in on purpose."""

import argparse
import sys
from pathlib import Path

from avff.data.relist import relist
from avff.errors import AvffError

EPILOG = """\
example:
  rm shards/faces/shard-000007.tar shards/faces/shard-000007.index.jsonl
  python tools/relist_shards.py shards/faces

Writes manifest.json from the *.tar files and the index beside each; keys, persons and splits are checked over all of
them. A run that was trained on the shards as they were refuses to go on, names what changed, and says how to accept the
new plan. Shards of another build are better kept in a folder of their own and mixed: list both in data.train.
"""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shards", type=Path, help="shard directory")
    arguments = parser.parse_args(argv)
    try:
        directory, added, removed = relist(arguments.shards)
    except AvffError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for name in removed:
        print(f"removed {name}")
    for name in added:
        print(f"added {name}")
    print(f"{directory.path}: {len(directory.shards)} shards with {len(directory.rows)} samples")
    return 0


if __name__ == "__main__":
    sys.exit(main())
