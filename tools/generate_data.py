#!/usr/bin/env python
"""Draws video to practise on: talking heads, true and forged, and things that move and sound."""

import argparse
import sys
from pathlib import Path

from avff.errors import AvffError
from avff.media.synthetic import DEMO_PLAN, generate_general_videos, generate_talking_heads

EPILOG = """\
examples:
  python tools/generate_data.py heads   --output media/heads
  python tools/generate_data.py general --output media/general --num-clips 100

`heads` writes people whose mouths follow their own voice, and forgeries of them in the four FakeAVCeleb categories;
metadata.csv holds labels, persons and splits for tools/make_shards.py. Clips that are there are kept.
"""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=("heads", "general"))
    parser.add_argument("--output", type=Path, required=True, help="folder to write to or to continue")
    parser.add_argument("--num-clips", type=int, default=80, help="clips of kind general (default: 80)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num-workers", type=int, default=2, help="processes (default: 2)")
    options = parser.parse_args()
    shared = {"seed": options.seed, "num_workers": options.num_workers}
    try:
        if options.kind == "heads":
            print(generate_talking_heads(options.output, plan=DEMO_PLAN, **shared))
        else:
            print(generate_general_videos(options.output, num_clips=options.num_clips, **shared))
    except AvffError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
