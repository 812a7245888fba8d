"""`avff extract` and `avff probe`."""

import argparse
from pathlib import Path

from avff.commands.parsing import add_command

FEATURES = ("video", "audio", "a2v", "v2a")


def add_extract(commands) -> None:
    parser = add_command(
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
        ":step-N, and :raw for unaveraged weights; or a model folder or .safetensors file that holds the encoders",
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


def add_probe(commands) -> None:
    parser = add_command(
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
