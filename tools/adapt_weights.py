#!/usr/bin/env python
"""The one door for weights: a run, a weight file or a published checkpoint -> what a config's model starts from."""

import argparse
import sys
from pathlib import Path
from typing import Any

from avff import __version__
from avff.config import Config, Modality, load_config
from avff.data.trained_on import inherited_records, join_records
from avff.errors import AvffError, ConfigError
from avff.models.adapt_files import WeightFile, adapt_files, licence_notice, open_weights
from avff.models.importers.registry import SOURCES
from avff.models.ledger import KeyLedger
from avff.models.weight_table import describe_file
from avff.models.weights import make_sidecar, save_weights
from avff.run_folder import resolve_checkpoint

EPILOG = f"""\
examples:
  python tools/adapt_weights.py --from runs/stage1 --to configs/stage2_faces.yaml --output stage2_init.safetensors
  python tools/adapt_weights.py --from runs/stage2:last --to configs/stage3_finetune.yaml --output stage3_init.safetensors
  python tools/adapt_weights.py --from video=marlin_vit_base_ytf.encoder.pt --from audio=audiomae_pretrained.pth \\
      --to configs/variants/stage2_marlin_audiomae.yaml --output weights/stage2_marlin_audiomae.safetensors
  python tools/adapt_weights.py --show marlin_vit_base_ytf.encoder.pt

FILE_OR_RUN is a run folder, with :best (the default), :last or :step-N and :raw for weights instead of their moving
average; a model folder; one of our .safetensors files with its .json sidecar; or a published .pth, .pt, .ckpt, .bin or
.safetensors of {", ".join(source.name for source in SOURCES)}.

Every key of the source and of the target is accounted for in a ledger, which is printed and saved in OUTPUT's JSON
sidecar; a key that fits nowhere is an error. docs/weights.md says what carries over from each source, and what every
change between two stages does. Start a run from the result with engine.init_weights=OUTPUT.
"""


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    try:
        if arguments.show:
            print(describe_file(weights_path(arguments.show), *arguments.format[:1], every_key=arguments.all))
        else:
            adapt(arguments)
    except AvffError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error}; nothing half-written was left", file=sys.stderr)
        return 2
    return 0


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--from",
        dest="sources",
        action="append",
        default=[],
        metavar="[video=|audio=]FILE_OR_RUN",
        help="where weights come from; with video= or audio= only that encoder and decoder are taken. Repeat it to "
        "join several",
    )
    add(
        "--format",
        nargs="+",
        default=[],
        metavar="NAME",
        help=f"what each published file is, in the order of --from; auto finds out. One of "
        f"{', '.join(source.name for source in SOURCES)}",
    )
    add(
        "--to",
        nargs="+",
        metavar=("CONFIG", "section.key=value"),
        help="YAML config that the weights are for, and overrides of it",
    )
    add("--output", type=Path, metavar="FILE", help=".safetensors file to write")
    add("--dry-run", action="store_true", help="print the ledger and write nothing")
    add("--quiet", action="store_true", help="print neither the ledger nor what is being done")
    add("--show", metavar="FILE_OR_RUN", help="print what a file holds, and do nothing else")
    add("--all", action="store_true", help="with --show: list every key")
    arguments = parser.parse_args(argv)
    if bool(arguments.show) == bool(arguments.sources):
        parser.error("give --from, --to and --output, or --show alone")
    if arguments.sources and not (arguments.to and (arguments.output or arguments.dry_run)):
        parser.error("--from needs --to CONFIG and --output FILE (or --dry-run)")
    if arguments.output and arguments.output.suffix != ".safetensors":
        parser.error(f"--output {arguments.output}: a weight file's name ends in .safetensors")
    return arguments


def adapt(arguments: argparse.Namespace) -> None:
    """Reads, adapts, joins and writes; prints as it goes."""
    say = (lambda text: None) if arguments.quiet else print
    target = load_config(arguments.to[0], arguments.to[1:])
    files = open_sources(arguments.sources, arguments.format)
    for file, only in files:
        say(f"from {file.path} ({file.title}{f', {only} only' if only else ''}) to {arguments.to[0]} ({target.stage})")
    tensors, ledger = adapt_files(files, target)
    say(ledger.describe())
    parents = [file.as_parent() for file, _ in files]
    for notice in filter(None, map(licence_notice, parents)):
        print(notice)
    if arguments.dry_run:
        say("dry run: nothing written")
        return
    save_weights(arguments.output, tensors, sidecar([file for file, _ in files], parents, target, ledger))
    say(f"written {arguments.output} and {arguments.output.with_suffix('.json')}")


def open_sources(sources: list[str], formats: list[str]) -> list[tuple[WeightFile, Modality | None]]:
    """Opens what `--from` names; each with the one modality to take, None for all of it."""
    names = list(formats)
    opened = []
    problems = []
    for text in sources:
        only, reference = split_modality(text)
        try:
            path = weights_path(reference)
            is_file = path == Path(reference)
            name = names.pop(0) if names and is_file else ""
            opened.append((open_weights(path, "" if name == "auto" else name), only))
        except AvffError as error:
            problems.append(str(error))
    if names:
        problems.append(
            f"--format names {len(formats)} files, --from fewer published ones: {', '.join(names)} left over"
        )
    if problems:
        raise ConfigError("\n".join(problems))
    return opened


def split_modality(text: str) -> tuple[Modality | None, str]:
    """Splits `video=FILE`; a name that begins otherwise is all reference."""
    for modality in ("video", "audio"):
        if text.startswith(f"{modality}="):
            return modality, text.removeprefix(f"{modality}=")
    return None, text


def weights_path(reference: str) -> Path:
    """Returns the file that holds the weights of a run, verified, or of a model folder; else it is a file already."""
    path = Path(reference)
    is_folder = path.is_dir() or (":" in path.name and not path.exists())
    return resolve_checkpoint(reference).weights_path if is_folder else path


def sidecar(
    files: list[WeightFile], parents: list[dict[str, Any]], target: Config, ledger: KeyLedger
) -> dict[str, Any]:
    builds = [file.sidecar["build"] for file in files if file.sidecar.get("build")]
    records = [inherited_records(file.sidecar, file.path) for file in files]
    return make_sidecar(
        f"weights of {' and '.join(file.title for file in files)} adapted to start {target.name}",
        target,
        parents=parents,
        build=builds[0] if builds and all(build == builds[0] for build in builds) else None,
        trained_on=join_records(*records),
        made_by=f"avff {__version__} tools/adapt_weights.py",
        new=list(ledger.new),
        ledger=ledger.to_dict(),
    )


if __name__ == "__main__":
    sys.exit(main())
