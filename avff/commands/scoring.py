"""`avff evaluate` and `avff predict`."""

import argparse
import json
import os
from collections import Counter
from pathlib import Path

from avff.commands.parsing import OVERRIDES_HELP, add_command
from avff.config import load_config
from avff.errors import REFUSED_EXIT_CODE, ConfigError, MediaError

# ------------------------------------------------------------------------------------------- evaluate


def add_evaluate(commands) -> None:
    parser = add_command(
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
        "and :raw for unaveraged weights; or a model folder or .safetensors file; or Open-AVFF's stage-3 file as it was published, with "
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


def add_predict(commands) -> None:
    parser = add_command(
        commands,
        "predict",
        _predict,
        "judge one media file, or every file of a folder",
        "One file: verdict, score and a timeline per window and face, printed, and written as JSON and PNG.\n"
        "A folder: one CSV row per file; an interrupted call continues. What cannot be judged is undecided, with the reason.\n"
        "The exit code is 2 for one file that cannot be decoded at all.",
        "examples:\n"
        "  avff predict clip.mp4 --checkpoint runs/stage3\n"
        "  avff predict videos/ --checkpoint runs/stage3 --output scores.csv --format open-avff\n"
        "  avff predict videos/ --checkpoint stage3.pth --format open-avff          Open-AVFF's own classifier, as published\n",
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
        "--num-workers",
        "--workers",
        type=int,
        default=len(os.sched_getaffinity(0)),
        help="cores that decode, find faces and cut, ahead of the network; no effect on scores (default: all)",
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

    prediction = predict_file(options.path, detector, batch_size=options.batch_size, num_workers=options.num_workers)
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
    rows = predict_folder(
        options.path,
        detector,
        output,
        format=options.format,
        batch_size=options.batch_size,
        num_workers=options.num_workers,
    )
    verdicts = Counter(row["verdict"] for row in rows)
    counts = ", ".join(f"{count} {verdict.lower()}" for verdict, count in sorted(verdicts.items()))
    print(f"{len(rows)} files: {counts}; written {output}")
