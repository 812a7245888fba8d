#!/usr/bin/env python
"""Looks into the checkpoints of a run: what they are, whether they are whole, how two differ; takes their weights out."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from tqdm import tqdm

from avff import run_folder
from avff.checkpoint_files import CanonicalState, Comparison, compare
from avff.checkpoints import read_checkpoint
from avff.config import Modality
from avff.errors import AvffError, CheckpointError, ConfigError
from avff.exporting.average import average_checkpoints
from avff.exporting.folder import write_folder
from avff.exporting.weights import Export, What, export_weights
from avff.files import sha256_of
from avff.models.weights import save_weights
from avff.run_folder import resolve_checkpoint
from avff.sidecar import read_sidecar

EPILOG = """\
examples:
  python tools/checkpoint.py inspect runs/stage1
  python tools/checkpoint.py verify runs/stage1
  python tools/checkpoint.py diff runs/stage1:step-1000 runs/moved:step-1000
  python tools/checkpoint.py export runs/stage1:best --output stage1.safetensors
  python tools/checkpoint.py export runs/stage2 --what encoders --modality video --output video.safetensors
  python tools/checkpoint.py average runs/stage3:step-900 runs/stage3:step-1000 --output mean.safetensors
  python tools/checkpoint.py folder runs/stage3 --output detector
  python tools/checkpoint.py onnx detector --output detector.onnx

RUN is a run folder, meaning its best checkpoint by validation (the newest of a run that was never validated); add
:last or :step-N for another. A checkpoint is one state by parameter name, so that two can be compared whatever ZeRO
stage and number of ranks wrote them. Nothing here needs DeepSpeed or a GPU, and a run that is training may be looked at.
What is taken out has LoRA merged, a JSON sidecar with its parents and licences, and appears whole or not at all.

exit code: 0 whole, or equal; 1 damaged, or different; 2 the command cannot be carried out.
"""
RUN_HELP = "run folder, with :best (the default), :last or :step-N"
SOURCE_HELP = RUN_HELP + "; :raw takes the weights instead of their average; or a model folder or .safetensors file"
MAX_LINES = 20


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    try:
        return arguments.run(arguments)
    except AvffError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error}; nothing half-written was left", file=sys.stderr)
        return 2


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    inspect = commands.add_parser("inspect", help="what a checkpoint is: step, origin, parameters, sizes")
    inspect.set_defaults(run=run_inspect)
    inspect.add_argument("run_name", metavar="RUN", help=RUN_HELP)
    verify = commands.add_parser("verify", help="read every byte of one or all checkpoints against their sha256")
    verify.set_defaults(run=run_verify)
    verify.add_argument(
        "run_name", metavar="RUN", help="run folder, meaning all its checkpoints; or RUN:step-N, :best, :last"
    )
    diff = commands.add_parser("diff", help="compare the states of two checkpoints tensor by tensor")
    diff.set_defaults(run=run_diff)
    diff.add_argument("one", metavar="A", help=RUN_HELP)
    diff.add_argument("other", metavar="B", help="the one to compare with, likewise")
    diff.add_argument(
        "--all", action="store_true", help=f"list every tensor that differs, not only {MAX_LINES} of each kind"
    )
    add_exports(commands)
    return parser.parse_args(argv)


def add_exports(commands: Any) -> None:
    export = commands.add_parser("export", help="write the weights of a checkpoint as one file with its sidecar")
    export.set_defaults(run=run_export)
    export.add_argument("run_name", metavar="RUN", help=SOURCE_HELP)
    export.add_argument("--output", type=Path, required=True, metavar="FILE", help=".safetensors file to write")
    export.add_argument(
        "--what",
        choices=get_args(What),
        default="full",
        help="all of the network (the default), its encoders, or a finetuned run's classifier, as all of its network",
    )
    export.add_argument(
        "--modality", choices=get_args(Modality), help="with --what encoders: this one alone instead of both"
    )
    average = commands.add_parser("average", help="write the mean of several checkpoints' weights")
    average.set_defaults(run=run_average)
    average.add_argument("run_names", metavar="RUN", nargs="+", help=SOURCE_HELP)
    average.add_argument("--output", type=Path, required=True, metavar="FILE", help=".safetensors file to write")
    folder = commands.add_parser("folder", help="write a model folder: weights, config, preprocessing, model card")
    folder.set_defaults(run=run_folder_command)
    folder.add_argument("run_name", metavar="RUN", help=SOURCE_HELP)
    folder.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to write")
    folder.add_argument("--overwrite", action="store_true", help="replace a model folder that is there")
    onnx = commands.add_parser("onnx", help="write a classifier as an ONNX or torch.export graph, compared with torch")
    onnx.set_defaults(run=run_onnx)
    onnx.add_argument("run_name", metavar="RUN", help=SOURCE_HELP)
    onnx.add_argument("--output", type=Path, metavar="FILE", help=".onnx file to write")
    onnx.add_argument("--torch-export", type=Path, metavar="FILE", help=".pt2 file to write, for torch.export.load")


# ------------------------------------------------------------------------------------------- inspect


def run_inspect(arguments: argparse.Namespace) -> int:
    run_dir, step = run_folder.find_checkpoint(arguments.run_name)
    directory = run_folder.checkpoint_dir(run_dir, step)
    for name, value in [*about(directory), *states(directory), *files(directory), *neighbours(run_dir)]:
        print(f"{name:22}  {value}")
    return 0


def about(directory: Path) -> Iterator[tuple[str, Any]]:
    """Yields what the checkpoint says about itself."""
    state = run_folder.read_state(directory)
    sidecar = read_sidecar(directory / run_folder.WEIGHTS)
    yield "checkpoint", directory
    yield "what", sidecar.get("what", "not recorded")
    yield "step", f"{state['step']:,}, {state['samples_seen']:,} samples seen"
    yield "saved by", f"{state['world_size']} ranks under ZeRO {state['zero_stage']}"
    yield "avff", f"{state['avff_version']}, revision {state['code_revision'] or 'unknown'}"
    if validation := state.get("validation"):
        yield "validation", f"{validation['metric']} {validation['value']:.4f}"
    for parent in sidecar.get("parents", []):
        yield "started from", f"{parent['what']} ({parent['file']}, sha256 {parent['sha256'][:12]})"
    yield "licences", ", ".join(sidecar.get("licences", []))


def states(directory: Path) -> Iterator[tuple[str, str]]:
    for folder in state_folders(directory):
        state = CanonicalState(folder)
        num_parameters = sum(count(shape) for shape in state.shapes.values())
        kinds = ", ".join(state.keys)
        yield (
            folder.name,
            f"{num_parameters:,} parameters in {len(state.shapes)} tensors, each with {kinds}; "
            f"{state.num_updates:,} updates",
        )


def files(directory: Path) -> Iterator[tuple[str, str]]:
    for name, entry in run_folder.read_listing(directory).items():
        yield f"  {name}", f"{entry['bytes']:,} bytes, sha256 {entry['sha256'][:12]}"


def neighbours(run_dir: Path) -> Iterator[tuple[str, str]]:
    """Yields what else lies beside the checkpoint."""
    best = run_folder.best_step(run_dir)
    steps = run_folder.committed_steps(run_dir)
    yield "all checkpoints", ", ".join(f"step-{step}{' (best)' if step == best else ''}" for step in steps)
    names = {f"step-{step}" for step in steps}
    for path in sorted((run_dir / run_folder.CHECKPOINTS).iterdir()):
        if path.name not in names:
            yield "not a checkpoint", f"{path.name}: being written, or set aside"


def state_folders(directory: Path) -> list[Path]:
    return sorted({path.parent for path in directory.glob("*/*.safetensors")}, reverse=True)


def count(shape: tuple[int, ...]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product


# ------------------------------------------------------------------------------------------- verify


def run_verify(arguments: argparse.Namespace) -> int:
    run_dir, step = run_folder.find_checkpoint(arguments.run_name)
    steps = [step] if ":" in arguments.run_name else run_folder.committed_steps(run_dir)
    num_damaged = 0
    for step in steps:
        directory = run_folder.checkpoint_dir(run_dir, step)
        problems = verify(directory)
        num_damaged += bool(problems)
        print("\n".join(problems or [f"{directory}: whole"]))
    if num_damaged:
        print(
            f"{num_damaged} of {len(steps)} checkpoints damaged; avff train sets them aside and goes on from a whole one"
        )
    return 1 if num_damaged else 0


def verify(directory: Path) -> list[str]:
    """Returns every problem of a checkpoint, with a bar over its bytes."""
    try:
        listing = run_folder.read_listing(directory)
    except CheckpointError as error:
        return [str(error)]
    problems = []
    total = sum(entry["bytes"] for entry in listing.values())
    with tqdm(total=total, unit="B", unit_scale=True, desc=directory.name, disable=None, leave=False) as bar:
        for name, entry in listing.items():
            problems.append(run_folder.file_problem(directory / name, entry))
            bar.update(entry["bytes"])
    return [problem for problem in problems if problem]


# ------------------------------------------------------------------------------------------- diff


def run_diff(arguments: argparse.Namespace) -> int:
    one, other = (
        run_folder.checkpoint_dir(*run_folder.find_checkpoint(name)) for name in (arguments.one, arguments.other)
    )
    names = [[folder.name for folder in state_folders(directory)] for directory in (one, other)]
    is_different = names[0] != names[1]
    if is_different:
        print(f"{one} holds {' and '.join(names[0])}, {other} holds {' and '.join(names[1])}")
    for name in (name for name in names[0] if name in names[1]):
        is_different |= diff(CanonicalState(one / name), CanonicalState(other / name), every=arguments.all)
    return 1 if is_different else 0


def diff(one: CanonicalState, other: CanonicalState, *, every: bool) -> bool:
    """Prints how two states differ; returns whether they do."""
    found: dict[str, list[Comparison]] = {}
    total = len(one.keys) * len(one.shapes)
    for comparison in tqdm(compare(one, other), total=total, desc=one.folder.name, disable=None, leave=False):
        found.setdefault(comparison.key, []).append(comparison)
    for key, comparisons in found.items():
        different = [comparison for comparison in comparisons if not comparison.is_equal]
        print(f"{one.folder.name} {key}: {len(comparisons) - len(different)} of {len(comparisons)} tensors equal")
        shown = different if every else different[:MAX_LINES]
        for comparison in shown:
            print(f"  {comparison.name}: {describe(comparison, one, other)}")
        if len(shown) < len(different):
            print(f"  and {len(different) - len(shown)} more; --all lists them")
    if one.num_updates != other.num_updates:
        print(f"{one.folder.name}: {one.num_updates} updates, {other.num_updates} there")
    return one.num_updates != other.num_updates or any(not c.is_equal for some in found.values() for c in some)


def describe(comparison: Comparison, one: CanonicalState, other: CanonicalState) -> str:
    if comparison.num_values is None:
        shapes = [state.shapes.get(comparison.name) for state in (one, other)]
        return " against ".join(f"shape {list(shape)}" if shape else "nothing" for shape in shapes)
    total = count(one.shapes[comparison.name])
    return f"{comparison.num_values:,} of {total:,} values differ, by up to {comparison.max_difference:.3g}"


# ------------------------------------------------------------------------------------------- weights out


def run_export(arguments: argparse.Namespace) -> int:
    if arguments.modality and arguments.what != "encoders":
        raise ConfigError(f"--modality {arguments.modality} goes with --what encoders, not {arguments.what}")
    checkpoint = read_checkpoint(resolve_checkpoint(arguments.run_name))
    modalities = (arguments.modality,) if arguments.modality else get_args(Modality)
    write(arguments.output, export_weights(checkpoint, arguments.what, modalities))
    return 0


def run_average(arguments: argparse.Namespace) -> int:
    write(arguments.output, average_checkpoints([resolve_checkpoint(name) for name in arguments.run_names]))
    return 0


def run_folder_command(arguments: argparse.Namespace) -> int:
    checkpoint = read_checkpoint(resolve_checkpoint(arguments.run_name))
    write_folder(arguments.output, checkpoint, overwrite=arguments.overwrite)
    print(f"written {arguments.output}: {', '.join(sorted(path.name for path in arguments.output.iterdir()))}")
    return 0


def run_onnx(arguments: argparse.Namespace) -> int:
    from avff.exporting import graph  # here: torch.export takes seconds to import

    if not (arguments.output or arguments.torch_export):
        raise ConfigError("nothing to write; give --output FILE.onnx, --torch-export FILE.pt2 or both")
    if arguments.output:
        graph.require_onnx()
    checkpoint = read_checkpoint(resolve_checkpoint(arguments.run_name))
    forward = graph.load_forward(checkpoint)
    program = graph.export_program(forward, checkpoint.config)
    for path, save in ((arguments.output, graph.write_onnx), (arguments.torch_export, graph.write_torch_export)):
        if path:
            written = save(path, program, forward, checkpoint)
            print_terms(written.sidecar)
            batches = " and ".join(map(str, graph.BATCHES))
            print(
                f"written {path} and {graph.sidecar_path(path).name}; its logits differ from torch's by at most "
                f"{written.difference:.2g} at batch {batches}"
            )
    return 0


def write(output: Path, export: Export) -> None:
    save_weights(output, export.tensors, export.sidecar)
    print_terms(export.sidecar)
    print(
        f"written {output} ({len(export.tensors)} tensors) and {output.with_suffix('.json').name}, "
        f"sha256 {sha256_of(output)}"
    )


def print_terms(sidecar: dict[str, Any]) -> None:
    for parent in sidecar["parents"]:
        print(f"from {parent['what']} ({parent['file']}, sha256 {parent['sha256'][:12]})")
    terms = ", not for commercial use" if sidecar["non_commercial"] else ""
    print(f"licences: {', '.join(sidecar['licences'])}{terms}")


if __name__ == "__main__":
    sys.exit(main())
