#!/usr/bin/env python
"""Computes how a config's stage would run on 1 to 1000 GPUs: speed, memory, loader, checkpoints, failures, hours.

Formulas over the config, a description of the cluster, and what tools/bench.py has measured; whatever was not measured
is assumed, and printed as such. --check trains for real with 1, 2 and 4 CPU processes and prints by how much step time,
bytes sent and memory differ from the formulas.
"""

import argparse
import sys
from pathlib import Path

from avff.bench.report import write_report
from avff.config import load_config
from avff.errors import AvffError, ConfigError
from avff.simulation import check
from avff.simulation.cluster import Cluster, is_cluster_file, load_cluster
from avff.simulation.costs import field_lines, known_costs
from avff.simulation.parameters import trainable_sizes
from avff.simulation.plot import draw
from avff.simulation.reading import plan_facts
from avff.simulation.stage import simulate
from avff.simulation.tables import report
from avff.strict_yaml import to_dict

GPUS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000)

EPILOG = f"""\
examples:
  python tools/simulate.py configs/stage1_kinetics.yaml --cluster configs/clusters/h200.yaml
  python tools/simulate.py configs/stage1_kinetics.yaml --cluster configs/clusters/h200.yaml \\
      --measured runs/bench/step.json runs/bench/loader.json runs/bench/checkpoint.json
  python tools/simulate.py configs/stage1_kinetics.yaml model.size=large engine.zero_stage=2 --gpus 8 64 --scaling strong
  python tools/simulate.py configs/stage1_kinetics.yaml --assume mfu=0.5 clips_per_second_per_core=200
  python tools/simulate.py --check

how to read it:
  speed    one update: passes over the clips, collectives that nothing hides, Adam; then the loader and the storage, which
           make it wait where they are slower. `limit` says what decides, so what to buy or to improve.
  memory   by ZeRO stage, with the config's micro batch; `largest micro` is what would fit under the config's stage.
  stage    the clips of the config's steps x batch, on so many GPUs, failures and restarts included. A save that overlaps
           training costs its `blocked s`; set engine.checkpoint_every_steps to `steps each`.

columns of speed:
  batch, micro, group   clips of an update, of one pass on one GPU, and that each contrast is among
  passes                micro batches per GPU and update (gradient accumulation)
  MFU %                 the model's FLOP of an update against the peak. Less than the assumed mfu, which is of the passes
                        alone, and counts critics and passes that are run again as work
  efficiency %          clips/s per GPU against the first row
  exposed ms            collectives that no backward pass hides
  contrast ms           similarities of the contrastive loss, in fp32
  wait ms               for loader or storage
  loader cores, has     cores that one GPU's clips take; cores it has, less one kept for training
  read GB/s             from storage, all GPUs together
  limit                 the largest part; and exposed communication where it is over 15 % of a step
columns of memory:
  ZeRO 0 to 3           the total under each stage; what follows are parts of the config's stage, and add up to it
  masters               the optimizer's fp32 weights where they are not the model's own
  moments, EMA          Adam's two averages of gradients; the moving average of weights
  contrast              embeddings of all GPUs and this one's similarities
  other                 gradient buckets, gathered weights, copies in bf16, and 2 GB assumed for CUDA
  fits, largest micro   whether the micro batch fits, and the largest that does
columns of the stage:
  blocked s, save s     for which a save holds training up, and until it is committed
  hours to failure      of the whole job, on average
  save every min        the interval that loses least (Daly), `steps each` the same in steps; up to `at most` steps cost
                        less than 0.1 % more
  goodput %             training's share of the time, with saves, lost work and restarts, at that interval
  as configured %       the same with engine.checkpoint_every_steps
  hours, GPU hours      with failures, at the best interval; cost: GPU hours x price_per_gpu_hour of the cluster

--scaling weak keeps the clips of each GPU, so that the batch grows (and the contrastive group where every GPU has to
hold a clip of it); strong keeps the batch, so that GPUs run out of clips. Where the numbers do not divide, it says why.

--assume takes (0: the cluster's own):
  {", ".join(field_lines())}
Copy a file of configs/clusters for a cluster of your own; each key there says its unit and where its number is to be had.
"""


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    try:
        print(check.run(arguments.folder) if arguments.check else run(arguments))
    except AvffError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", type=Path, nargs="?", metavar="CONFIG", help="YAML file of a run, see configs/")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="config overrides")
    parser.add_argument(
        "--cluster", type=Path, default=Path("configs/clusters/h200.yaml"), help="YAML file (default %(default)s)"
    )
    parser.add_argument(
        "--gpus",
        type=_positive,
        nargs="+",
        default=[],
        help="default: powers of two and 1000; of a cluster without GPUs: processes, up to one node's",
    )
    parser.add_argument("--scaling", choices=("weak", "strong"), default="weak", help="default: weak, see below")
    parser.add_argument("--measured", type=Path, nargs="+", default=[], metavar="JSON", help="of tools/bench.py")
    parser.add_argument(
        "--assume", nargs="+", default=[], metavar="NAME=VALUE", help="instead of an assumption, see below"
    )
    parser.add_argument(
        "--samples",
        type=_positive,
        default=240_000,
        metavar="N",
        help="per epoch, where the shards are not there (default %(default)s)",
    )
    parser.add_argument("--check", action="store_true", help="compare the formulas with real runs on this machine")
    parser.add_argument(
        "--folder", type=Path, default=Path("runs/simulate"), help="for the JSON and the picture (default %(default)s)"
    )
    parser.add_argument("--svg", action="store_true", help="draw an SVG instead of a PNG")
    return parser.parse_intermixed_args(argv)


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of 1 or more")
    return int(text)


def run(arguments: argparse.Namespace) -> str:
    if arguments.config is None:
        raise ConfigError("no CONFIG given, the files are in configs/; or use --check")
    if is_cluster_file(arguments.config):
        raise ConfigError(f"{arguments.config}: this is a cluster file; give it with --cluster, after a CONFIG")
    config = load_config(arguments.config, arguments.overrides)
    cluster = load_cluster(arguments.cluster)
    are_there = config.data.train and all(Path(source.path).is_dir() for source in config.data.train)
    plan = plan_facts(config, 0 if are_there else arguments.samples)
    assumed = list(arguments.assume)
    if plan.bytes_per_sample and not any(text.startswith("megabytes_per_clip=") for text in assumed):
        assumed.append(f"megabytes_per_clip={plan.bytes_per_sample / 1e6:.4g}")
    known = known_costs(assumed, arguments.measured, config, cluster)
    trained = trainable_sizes(config)
    counts = arguments.gpus or default_counts(cluster)
    simulated = [simulate(config, trained, cluster, known.costs, count, arguments.scaling) for count in counts]
    problems = [f"{row['gpus']} {cluster.workers}: {row['problem']}" for row in simulated if row["problem"]]
    rows = [row for row in simulated if not row["problem"]]
    if not rows:
        raise ConfigError("\n".join(problems))
    lines = [*report(config, cluster, known, arguments.scaling, rows, plan), *problems, ""]
    path = arguments.folder / f"{config.name}-{cluster.name}"
    picture = path.with_suffix(".svg" if arguments.svg else ".png")
    draw(rows, cluster, f"{config.name} on {cluster.name}, {arguments.scaling} scaling", picture)
    about = {
        "config": to_dict(config),
        "cluster": to_dict(cluster),
        "costs": known.sources,
        "scaling": arguments.scaling,
        "problems": problems,
    }
    written = write_report(path.with_suffix(".json"), rows, about).splitlines()[-1]
    return "\n".join([*lines, f"written {picture}", written])


def default_counts(cluster: Cluster) -> list[int]:
    """Returns those of GPUS; of them on a machine without GPUs, which is not one of many, those of one node."""
    return [count for count in GPUS if cluster.device == "gpu" or count <= cluster.gpus_per_node]


if __name__ == "__main__":
    sys.exit(main())
