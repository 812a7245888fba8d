"""The command line: words -> Config -> one function call. Rooms are imported by the command that needs them."""

import argparse
import json
import logging
import os
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from avff import __version__, launched
from avff.config import load_config
from avff.errors import REFUSED_EXIT_CODE, AvffError, ConfigError, MediaError, describe, exit_code

SPEAKING_SECONDS = 30.0
"""What another process of this machine may take, starting included, to say what is wrong."""

OVERRIDES_HELP = "config overrides, such as optim.learning_rate=1e-4 (lists and text as in YAML)"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the process exit code: 0 done, or an error's (avff.errors.exit_code).

    Under a launcher `avff train` ends the process itself (avff.engine.process); 75 there: saved, start the line again.
    """
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    launched.adopt_slurm_environment()
    try:
        return options.run(options) or 0
    except (AvffError, KeyboardInterrupt) as error:
        if _speaks():
            print(f"avff {options.command}: {describe(error)}", file=sys.stderr)
        else:
            _let_the_first_speak()
        launched.note_exit_code(exit_code(error))
        return exit_code(error)


def run() -> NoReturn:
    """The `avff` program: `main`, and the end of the process.

    After a training the interpreter's own end, with threads of gloo and wandb still alive, is now and then an abort
    (code -6), which would pass for a crash.
    """
    code = main()
    if "avff.engine.process" in sys.modules:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _speaks() -> bool:
    """False in all but the first process that a launcher starts on a machine: all read the same config and refuse it."""
    return os.environ.get("LOCAL_RANK", "0") == "0"  # not from avff.distributed, which imports torch


def _let_the_first_speak() -> None:
    """Waits for the launcher's TERM, sent once the first process has spoken and ended; sooner, it would cut that short."""
    signals = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    signal.sigtimedwait(signals, SPEAKING_SECONDS)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="avff",
        description="Audio-visual forgery detection: pretrain on real video, finetune to find fakes, evaluate, predict.",
        epilog="Shards are built by tools/make_shards.py, weights are carried between stages by tools/adapt_weights.py. "
        "Start with: avff demo",
    )
    parser.add_argument("--version", action="version", version=f"avff {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (
        _add_demo,
        _add_describe,
        _add_doctor,
        _add_train,
        _add_report,
        _add_evaluate,
        _add_predict,
        _add_extract,
        _add_probe,
    ):
        add(commands)
    return parser


def _add(commands, name: str, run, help: str, description: str, epilog: str = "") -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=help,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


# ------------------------------------------------------------------------------------------- train, describe


def _add_train(commands) -> None:
    parser = _add(
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


def _add_describe(commands) -> None:
    parser = _add(
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


def _add_report(commands) -> None:
    parser = _add(
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


def _add_doctor(commands) -> None:
    parser = _add(
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
    if _speaks():
        in_terminal = sys.stdout.isatty()
        width = shutil.get_terminal_size().columns if in_terminal else 0
        print(as_json(report) if options.json else as_text(report, width=width, colours=in_terminal), flush=True)
    return REFUSED_EXIT_CODE if report.has_failed else 0


# ------------------------------------------------------------------------------------------- evaluate


def _add_evaluate(commands) -> None:
    parser = _add(
        commands,
        "evaluate",
        _evaluate,
        "score a split of shards: rows, summary with intervals, HTML page",
        "Scores every clip of a split once and writes rows.jsonl, rows.csv, summary.json and page.html. A clip without\n"
        "a face or sound is undecided and counted. With --baselines, what is solvable without looking is scored beside it.",
        "examples:\n"
        "  avff evaluate --checkpoint runs/stage3 --shards shards/test\n"
        "  avff evaluate configs/stage3_finetune.yaml --checkpoint runs/stage3:last:raw --shards shards/a shards/b\n"
        "  avff evaluate --checkpoint runs/b --shards shards/test --compare runs/a/evaluation/test/rows.jsonl\n",
    )
    parser.add_argument(
        "config", type=Path, nargs="?", metavar="CONFIG", help="refuse a checkpoint that does not fit it"
    )
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help=OVERRIDES_HELP)
    _add_checkpoint(parser)
    parser.add_argument("--shards", type=Path, nargs="+", required=True, metavar="DIR", help="shard directories")
    parser.add_argument("--split", default="test", help="train, val or test (default: test)")
    parser.add_argument("--output", type=Path, metavar="DIR", help="where to write (default: RUN/evaluation/SPLIT)")
    parser.add_argument(
        "--compare", type=Path, nargs="+", default=[], metavar="ROWS", help="rows.jsonl of others to overlay"
    )
    parser.add_argument(
        "--baselines",
        action="store_true",
        help="also score what needs no pixels (metadata) and an untrained network; the shards have to hold `train` too",
    )
    parser.add_argument("--num-workers", type=int, default=2, help="decoding processes (default: 2)")
    parser.add_argument(
        "--allow-other-build", action="store_true", help="accept shards built otherwise than for training"
    )
    parser.add_argument("--allow-missing", action="store_true", help="give metrics although clips could not be read")


def _add_checkpoint(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint",
        required=True,
        metavar="RUN[:WHICH]",
        help="run folder, meaning its best checkpoint by validation with averaged (EMA) weights; add :last or :step-N, "
        "and :raw for unaveraged weights; or a .safetensors file; or Open-AVFF's stage-3 file as it was published, with "
        ":resize for whole frames squeezed to 224 pixels instead of its evaluation's crop",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    parser.add_argument("--batch-size", type=int, default=8, help="windows per forward pass (default: 8)")


def _evaluate(options: argparse.Namespace) -> None:
    if options.config and "=" in str(options.config):
        raise ConfigError(f"{options.config}: overrides follow a CONFIG; name the config file first")
    config = load_config(options.config, options.overrides) if options.config else None
    from avff.evaluation.text import describe_summary
    from avff.inference.baselines import evaluate_baselines
    from avff.inference.evaluate import evaluate
    from avff.inference.load import load_detector

    detector = load_detector(options.checkpoint, config=config, device=options.device)
    output = options.output or detector.run_dir / "evaluation" / options.split
    shared = {"batch_size": options.batch_size, "num_workers": options.num_workers}
    compare = list(options.compare)
    if options.baselines:
        if detector.config is None:
            raise ConfigError(
                f"{options.checkpoint}: --baselines takes the clip of its untrained network from a run's config, which a "
                "published file has not; run it with a checkpoint of avff train and hand its tables on with --compare"
            )
        baselines = evaluate_baselines(
            detector.config, options.shards, output, test_split=options.split, device=options.device, **shared
        )
        compare += baselines.row_paths
    result = evaluate(
        detector,
        options.shards,
        output,
        split=options.split,
        compare=compare,
        allow_other_build=options.allow_other_build,
        allow_missing=options.allow_missing,
        **shared,
    )
    print(describe_summary(result.summary))
    print(f"page: {result.page}")


# ------------------------------------------------------------------------------------------- predict


def _add_predict(commands) -> None:
    parser = _add(
        commands,
        "predict",
        _predict,
        "judge one media file, or every file of a folder",
        "One file: verdict, score and a timeline per window and face, printed, and written as JSON and PNG.\n"
        "A folder: one CSV row per file; an interrupted call continues. What cannot be judged is undecided, with the reason.\n"
        "The exit code is 2 for one file that cannot be decoded at all.",
        "examples:\n"
        "  avff predict clip.mp4 --checkpoint runs/stage3\n"
        "  avff predict videos/ --checkpoint runs/stage3 --output scores.csv --format open-avff\n",
    )
    parser.add_argument("path", type=Path, metavar="PATH", help="media file, or a folder of them")
    _add_checkpoint(parser)
    parser.add_argument(
        "--output",
        type=Path,
        help="one file: stem of the .json and .png (default: PATH with .avff appended); a folder: the CSV "
        "(default: predictions.csv in the current folder)",
    )
    parser.add_argument(
        "--format",
        choices=("avff", "open-avff"),
        default="avff",
        help="columns of a folder's CSV; open-avff writes video_name,y_pred, empty where undecided, and keeps the full "
        "table beside it as OUTPUT.full.csv (default: avff)",
    )


def _predict(options: argparse.Namespace) -> int | None:
    if not options.path.exists():
        raise MediaError(f"{options.path}: no such file or folder", reason="MISSING")
    from avff.inference.load import load_detector

    detector = load_detector(options.checkpoint, device=options.device)
    if options.path.is_dir():
        _predict_folder(options, detector)
        return None
    return _predict_one(options, detector)


def _predict_one(options: argparse.Namespace, detector) -> int | None:
    from avff.inference.predict import predict_file
    from avff.inference.report import as_json, as_text
    from avff.inference.timeline import draw_timeline

    prediction = predict_file(options.path, detector, batch_size=options.batch_size)
    stem = options.output or options.path.with_name(options.path.name + ".avff")
    json_path, png_path = Path(f"{stem}.json"), Path(f"{stem}.png")
    json_path.parent.mkdir(parents=True, exist_ok=True)
    json_path.write_text(json.dumps(as_json(prediction), indent=1, allow_nan=False) + "\n")
    png_path.write_bytes(draw_timeline(prediction))
    print(as_text(prediction))
    print(f"written: {json_path} and {png_path}")
    return None if prediction.segments else REFUSED_EXIT_CODE


def _predict_folder(options: argparse.Namespace, detector) -> None:
    from avff.inference.predict_many import predict_folder

    output = options.output or Path("predictions.csv")
    rows = predict_folder(options.path, detector, output, format=options.format, batch_size=options.batch_size)
    verdicts = Counter(row["verdict"] for row in rows)
    counts = ", ".join(f"{count} {verdict.lower()}" for verdict, count in sorted(verdicts.items()))
    print(f"{len(rows)} files: {counts}; written {output}")


# ------------------------------------------------------------------------------------------- extract, probe


FEATURES = ("video", "audio", "a2v", "v2a")


def _add_extract(commands) -> None:
    parser = _add(
        commands,
        "extract",
        _extract,
        "features of stored clips by any checkpoint, as .npy or side shards",
        "Writes what the encoders of a checkpoint say about every clip of shards: the mean of their tokens (video, audio),\n"
        "and of the tokens that sound predicts for the picture (a2v) and the picture for the sound (v2a). Any stage will\n"
        "do, no label is needed. Windows are those of evaluation, at most half a clip apart.\n"
        "\n"
        "  --level clip      (rows, width)           a row per clip: mean over its slices and windows\n"
        "  --level window    (rows, width)           a row per window: mean over its slices\n"
        "  --level slice     (rows, slices, width)   a row per window, its slices in order of time\n"
        "\n"
        "OUTPUT/index.jsonl says what each row shows (key, split, track, seconds, labels, people), OUTPUT/extract.json where\n"
        "the features come from and which clips were left out, and why: a clip without a face or sound never gets a row.\n"
        "An interrupted call goes on when it is started again; one that is finished does nothing.",
        "examples:\n"
        "  avff extract --checkpoint runs/stage2 --shards shards/talking --output features/stage2\n"
        "  avff extract --checkpoint runs/stage3:last --shards shards/test --split test --features a2v v2a \\\n"
        "      --level slice --output features/slices\n"
        "  avff extract --checkpoint marlin.safetensors --shards shards/a --features video --format shards \\\n"
        "      --output features/a                    one .tar per shard, joined by key in webdataset\n"
        "then:\n"
        "  avff probe --train features/stage2         what is in them\n"
        "  numpy.load('features/stage2/video.npy', mmap_mode='r')\n",
    )
    parser.add_argument(
        "--checkpoint",
        required=True,
        metavar="RUN[:WHICH]",
        help="run folder of any stage, meaning its best checkpoint by validation with averaged (EMA) weights; add :last or "
        ":step-N, and :raw for unaveraged weights; or a .safetensors file that holds the encoders",
    )
    parser.add_argument("--shards", type=Path, nargs="+", required=True, metavar="DIR", help="shard directories")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="new folder, or one to go on with")
    parser.add_argument(
        "--split", choices=("train", "val", "test", "all"), default="all", help="clips to read (default: all)"
    )
    parser.add_argument(
        "--features",
        nargs="+",
        choices=FEATURES,
        default=("video", "audio"),
        metavar="NAME",
        help="any of video audio a2v v2a (default: video audio)",
    )
    parser.add_argument(
        "--level", choices=("clip", "slice", "window"), default="clip", help="see above (default: clip)"
    )
    parser.add_argument(
        "--tracks",
        choices=("main", "all"),
        default="main",
        help="main: the known speaker, else the largest face; all: every face has rows of its own (default: main)",
    )
    parser.add_argument(
        "--format",
        choices=("npy", "shards"),
        default="npy",
        help="npy: one array per feature; shards: KEY.FEATURE.npy in tars named and ordered as the source (default: npy)",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    parser.add_argument("--batch-size", type=int, default=8, help="windows per forward pass (default: 8)")
    parser.add_argument("--num-workers", type=int, default=2, help="decoding processes (default: 2)")


def _extract(options: argparse.Namespace) -> None:
    from avff.features.extract import describe_extraction, extract

    extraction = extract(
        options.checkpoint,
        options.shards,
        options.output,
        features=options.features,
        split=options.split,
        level=options.level,
        tracks=options.tracks,
        form=options.format,
        device=options.device,
        batch_size=options.batch_size,
        num_workers=options.num_workers,
    )
    print(describe_extraction(extraction))


def _add_probe(commands) -> None:
    parser = _add(
        commands,
        "probe",
        _probe,
        "what extracted features hold: nearest neighbours and a linear probe",
        "Learns from the features of `avff extract` with two classifiers that cannot learn much by themselves: the k nearest\n"
        "neighbours by cosine, and logistic regression on standardised features. Prints AUC and balanced accuracy with\n"
        "95 % intervals over people, per feature set and for all together; writes probe.json and probe.png.\n"
        "\n"
        "Learns the split train, measures the split test, chooses the regularisation on the split val (without one, by\n"
        "cross-validation over people). Clips in both parts are refused; people in both are said.",
        "examples:\n"
        "  avff probe --train features/stage2\n"
        "  avff probe --train features/stage2 --label category --k 50\n"
        "  avff probe --train features/fakeavceleb --test features/deepfaketimit --label video_is_fake --features video\n",
    )
    parser.add_argument("--train", type=Path, required=True, metavar="FEATURES_DIR", help="folder of avff extract")
    parser.add_argument(
        "--test",
        type=Path,
        metavar="FEATURES_DIR",
        help="measure on this extraction (default: the split test of --train)",
    )
    parser.add_argument(
        "--label",
        choices=("is_fake", "video_is_fake", "audio_is_fake", "category"),
        default="is_fake",
        help="what to tell apart; rows that do not have it are left out and counted (default: is_fake)",
    )
    parser.add_argument(
        "--features",
        nargs="+",
        choices=FEATURES,
        default=(),
        metavar="NAME",
        help="feature sets to measure (default: all that were extracted)",
    )
    parser.add_argument("--k", type=int, default=20, help="neighbours (default: 20)")
    parser.add_argument("--output", type=Path, metavar="DIR", help="where to write (default: TRAIN/probe_LABEL)")


def _probe(options: argparse.Namespace) -> None:
    from avff.features.probe import describe_probe, probe

    found = probe(
        options.train, options.test, label=options.label, features=options.features, k=options.k, output=options.output
    )
    print(describe_probe(found.report))
    print(f"written: {found.json_path} and {found.png_path}")


# ------------------------------------------------------------------------------------------- demo


def _add_demo(commands) -> None:
    parser = _add(
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
