#!/usr/bin/env python
"""Makes the weights of one stage fit the next: stage 1 -> 2, stage 2 -> 3, or another clip geometry."""

import argparse
import sys
from pathlib import Path

from avff import __version__
from avff.config import load_config
from avff.data.trained_on import inherited_records
from avff.errors import AvffError
from avff.models.adapt import adapt_weights
from avff.models.weights import load_weights, make_sidecar, parent_of, save_weights
from avff.run_folder import resolve_checkpoint

EPILOG = """\
examples:
  python tools/adapt_weights.py --from runs/stage1 --to configs/stage2_faces.yaml --output stage2_init.safetensors
  python tools/adapt_weights.py --from runs/stage2:last --to configs/stage3_finetune.yaml --output stage3_init.safetensors

Stage 1 to 2 keeps the whole network; position tables and the token maps of A2V/V2A are interpolated where clip
length, resolution or mel frames changed. Stage 2 to 3 drops the decoders (critics are never in a weight file) and
leaves the pools and heads to a random start. A ledger of all keys is printed and saved in OUTPUT's JSON sidecar;
a key that fits nowhere is an error. Start a run from the result with engine.init_weights=OUTPUT.
"""


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    try:
        print(adapt(arguments.source, arguments.to, arguments.output, dry_run=arguments.dry_run))
    except AvffError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--from",
        dest="source",
        required=True,
        metavar="RUN",
        help="run folder, with :best (the default), :last or :step-N and :raw for weights instead of their moving "
        "average; or a .safetensors file with its .json sidecar",
    )
    parser.add_argument("--to", type=Path, required=True, metavar="CONFIG", help="YAML config of the next stage")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help=".safetensors file to write")
    parser.add_argument("--dry-run", action="store_true", help="print the ledger and write nothing")
    return parser.parse_args(argv)


def adapt(source: str, to: Path, output: Path, *, dry_run: bool) -> str:
    """Adapts one weight file and returns what to tell the user."""
    checkpoint, target = resolve_checkpoint(source), load_config(to)
    tensors, sidecar = load_weights(checkpoint.weights_path)
    adapted, ledger = adapt_weights(tensors, checkpoint.config, target, left_out=sidecar.get("new", []))
    lines = [f"from {checkpoint.weights_path} ({checkpoint.config.stage}) to {to} ({target.stage})", ledger.describe()]
    if dry_run:
        return "\n".join([*lines, "dry run: nothing written"])
    about = make_sidecar(
        f"weights of {checkpoint.config.name} adapted to start {target.name}",
        target,
        parents=[parent_of(checkpoint.weights_path)],
        build=sidecar.get("build"),
        trained_on=inherited_records(sidecar, checkpoint.weights_path),
        made_by=f"avff {__version__} tools/adapt_weights.py",
        new=ledger.new,
        ledger=ledger.to_dict(),
    )
    save_weights(output, adapted, about)
    return "\n".join([*lines, f"written {output} and {output.with_suffix('.json')}"])


if __name__ == "__main__":
    sys.exit(main())
