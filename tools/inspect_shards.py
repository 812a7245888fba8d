"""Shows what a shard directory holds.

    python tools/inspect_shards.py shards/faces
    python tools/inspect_shards.py shards/faces --keys id00_0000,id01_0003 --output pictures/

The first prints counts by split, label, category and status from the index; the second also draws one PNG per key.
"""

import argparse
import sys
from pathlib import Path

from avff.building.pictures import draw_sample
from avff.building.summary import summarize
from avff.data.shards import ShardDirectory, open_directory, read_sample
from avff.errors import AvffError, ShardError


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path, help="shard directory")
    parser.add_argument("--keys", default="", help="samples to draw, comma-separated")
    parser.add_argument("--output", type=Path, default=Path("pictures"), help="folder for the PNGs")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    try:
        directory = open_directory(arguments.shards)
        print(summarize(directory).as_text())
        draw_keys(directory, [key for key in arguments.keys.split(",") if key], arguments.output)
    except AvffError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def draw_keys(directory: ShardDirectory, keys: list[str], output: Path) -> None:
    rows = {row.key: row for row in directory.rows}
    if missing := [key for key in keys if key not in rows]:
        raise ShardError(f"{directory.path}: holds no {', '.join(missing)}; its first key is {directory.rows[0].key}")
    for key in keys:
        output.mkdir(parents=True, exist_ok=True)
        path = output / f"{key}.png"
        path.write_bytes(draw_sample(read_sample(directory, rows[key])))
        print(path)


if __name__ == "__main__":
    sys.exit(main())
