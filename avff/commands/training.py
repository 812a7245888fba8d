"""`avff train`, `describe`, `report`, `doctor` and `demo`."""

import argparse
import os
import shutil
import sys
from pathlib import Path

from avff import launched
from avff.commands.parsing import OVERRIDES_HELP, add_command
from avff.config import load_config
from avff.errors import REFUSED_EXIT_CODE

# ------------------------------------------------------------------------------------------- train, describe


def add_train(commands) -> None:
    parser = add_command(
        commands,
        "train",
        _train,
        "train one stage; continues an existing run folder",
        "Trains the stage that CONFIG describes into runs/<name>. A folder that holds a run is continued at its newest\n"
        "good checkpoint; resources and logging may have changed, anything else is refused.",
        "examples:\n"
        "  avff train configs/demo/stage1.yaml                        one process\n"
        "  torchrun --nproc-per-node 8 -m avff train configs/stage1_kinetics.yaml\n"
        "  avff train configs/stage1_kinetics.yaml optim.learning_rate=1e-4 name=lr_1e-4\n",
    )
    parser.add_argument("config", type=Path, metavar="CONFIG", help="YAML file, see configs/")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help=OVERRIDES_HELP)


def _train(options: argparse.Namespace) -> int | None:
    config = load_config(options.config, options.overrides)
    # Torch would print a C++ stack for every connection that another rank closes; what matters arrives as an exception.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from avff.engine.train import train

    return train(config)


def add_describe(commands) -> None:
    parser = add_command(
        commands,
        "describe",
        _describe,
        "print parameters, tokens and FLOPs of a config",
        "Builds the model of CONFIG without memory (meta device) and prints what one clip costs.",
        "example:\n  avff describe configs/stage1_kinetics.yaml model.size=large\n",
    )
    parser.add_argument("config", type=Path, metavar="CONFIG", help="YAML file, see configs/")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help=OVERRIDES_HELP)


def _describe(options: argparse.Namespace) -> None:
    config = load_config(options.config, options.overrides)
    from avff.models.flops import describe

    print(describe(config))


# ------------------------------------------------------------------------------------------- report


def add_report(commands) -> None:
    parser = add_command(
        commands,
        "report",
        _report,
        "curves of one or more runs, laid over each other, as one HTML page",
        "Draws what the runs measured, whether they have ended or not: losses, validation, gradient norms, learning\n"
        "rates, speed, every node's load; starts and rewinds are marked on the curves. Below them: where the configs\n"
        "differ, how each start ended, what was replaced and why, the newest reconstructions. The page is one file,\n"
        "needs no network and no account, and is written anew by the same line.",
        "examples:\n"
        "  avff report runs/stage1_kinetics\n"
        "  avff report runs/stage3 runs/scratch --output compared.html --smooth 0.8\n"
        "  avff report runs/demo                          every run in a folder\n",
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folder, or a folder of run folders")
    parser.add_argument(
        "--output", type=Path, default=Path("report.html"), metavar="FILE", help="page to write (default: report.html)"
    )
    parser.add_argument(
        "--smooth",
        type=_smoothing,
        default=0.0,
        metavar="WEIGHT",
        help="where the smoothing slider stands (default: 0)",
    )


def _smoothing(text: str) -> float:
    weight = float(text)
    if not 0 <= weight < 1:
        raise argparse.ArgumentTypeError(f"{text} is not in [0, 1): 0 shows what was measured, 0.9 a long average")
    return weight


def _report(options: argparse.Namespace) -> None:
    from avff.report.page import write_report

    written = write_report(options.runs, options.output, smoothing=options.smooth)
    what = f"{written.num_runs} run{'s' if written.num_runs > 1 else ''}, {written.num_charts} charts"
    print(f"{written.path}: {what}, {written.num_bytes / 1e6:.1f} MB; open it in a browser")


# ------------------------------------------------------------------------------------------- doctor


def add_doctor(commands) -> None:
    parser = add_command(
        commands,
        "doctor",
        _doctor,
        "check nodes, network, shards and run folder before a job is burnt",
        "Checks what usually breaks, on every node that it is started on, and prints one line per answer with the fix:\n"
        "versions, GPUs, memory and limits, names and addresses, shards, the run folder, clocks, all-reduce between all\n"
        "ranks. Start it as the training is to be started. Ends with 2 where something FAILs, else with 0.",
        "examples:\n"
        "  avff doctor                                                 this machine alone\n"
        "  avff doctor configs/stage1_kinetics.yaml                    what this config needs, on this machine\n"
        "  srun --nodes 8 --ntasks-per-node 8 --gpus-per-node 8 avff doctor configs/stage1_kinetics.yaml\n"
        "  torchrun --nproc-per-node 8 -m avff doctor configs/stage1_kinetics.yaml data.num_workers=8\n"
        "  avff doctor configs/stage1_kinetics.yaml --json > doctor.json\n",
    )
    parser.add_argument("config", type=Path, nargs="?", metavar="CONFIG", help="YAML file of what is to be trained")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help=OVERRIDES_HELP)
    parser.add_argument("--json", action="store_true", help="print every answer of every node as JSON")
    parser.add_argument(
        "--limit-seconds",
        type=float,
        default=60.0,
        metavar="S",
        help="longest that one check may take, and that a rank may be without news (default: 60)",
    )


def _doctor(options: argparse.Namespace) -> int:
    config = load_config(options.config, options.overrides) if options.config else None
    # Read when torch is loaded: its own words about a lost connection are stacks of C++ frames.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
    from avff.doctor.report import as_json, as_text
    from avff.doctor.run import diagnose

    report = diagnose(config, limit_seconds=options.limit_seconds)
    if report is None:
        return 0
    if launched.speaks():
        in_terminal = sys.stdout.isatty()
        width = shutil.get_terminal_size().columns if in_terminal else 0
        print(as_json(report) if options.json else as_text(report, width=width, colours=in_terminal), flush=True)
    return REFUSED_EXIT_CODE if report.has_failed else 0


# ------------------------------------------------------------------------------------------- demo


def add_demo(commands) -> None:
    parser = add_command(
        commands,
        "demo",
        _demo,
        "the whole system on two CPU cores: generate, build, train three stages, evaluate, predict",
        "Generates talking heads and general video, builds shards, trains stages 1 to 3 with two DeepSpeed processes,\n"
        "evaluates on people never seen in training and predicts a real and a forged clip. Prints every command that it\n"
        "runs. Everything lies in runs/demo; finished phases are kept: run it again after an interruption.",
    )
    parser.add_argument(
        "--fresh", action="store_true", help="delete what an earlier demo left in runs/demo, and start over"
    )


def _demo(options: argparse.Namespace) -> None:
    from avff.demo import run_demo

    print(run_demo(fresh=options.fresh))
