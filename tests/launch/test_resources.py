"""What a job asks for: options, their defaults, and every mistake in them at once."""

import argparse
import dataclasses

import pytest

from avff.errors import ConfigError
from launch.resources import Resources, add_options, as_single_task, from_options, parse


def read(*words: str, **defaults) -> Resources:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("words", nargs="*")
    add_options(parser, **defaults)
    return from_options(parse(parser, words))


def test_without_options_it_is_the_defaults():
    assert read() == Resources()
    assert read(minutes=5, partition="gpu") == Resources(minutes=5, partition="gpu", signal_seconds=120)


def test_every_field_has_an_option():
    given = Resources(
        nodes=2, tasks_per_node=3, gpus_per_node=4, cpus_per_task=5, memory_gb=6, exclusive=True, minutes=7,
        signal_seconds=8, partition="a", account="b", qos="c", constraint="d", exclude="e", sbatch=("--comment=f",),
        setup=("g", "h"), container="i j", python="k",
    )  # fmt: skip
    words = []
    for item in dataclasses.fields(Resources):
        value, flag = getattr(given, item.name), "--" + item.name.replace("_", "-")
        assert value != item.default, f"{item.name}: the test has to give another value than the default"
        words += [flag] if value is True else [f"{flag}={v}" for v in (value if isinstance(value, tuple) else [value])]
    assert read(*words) == given


def test_a_task_per_gpu_unless_said_otherwise():
    assert read("--gpus-per-node=8").tasks_per_node == 8
    assert read("--gpus-per-node=8", "--tasks-per-node=1").tasks_per_node == 1
    assert read("--gpus-per-node=8", "--nodes=2").num_tasks == 16


def test_every_mistake_is_reported_at_once_with_what_is_valid():
    words = ["a.yaml", "--nods=2", "--gpus-per-node", "four", "--minutes=2", "--nodes=0", "--sbatch=--output=x"]
    with pytest.raises(ConfigError) as caught:
        read(*words, "--sbatch=hold")
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("6 mistakes")
    assert lines[1:7] == [
        "  --nods=2: no such option; did you mean --nodes?",
        "  --gpus-per-node: 'four' is not a whole number",
        "  --nodes: 0 is too small; use 1 or more",
        "  --signal-seconds: 120 is no shorter than --minutes 2; use less than 120",
        "  --sbatch: --output is set already; logs lie in the job's folder",
        "  --sbatch: 'hold' is no option of sbatch; write --sbatch=--name=value",
    ]
    for item in dataclasses.fields(Resources):
        assert f"--{item.name.replace('_', '-')}" in lines[7]


def test_options_of_sbatch_that_contradict_others_are_refused():
    with pytest.raises(ConfigError) as caught:
        read("--sbatch=--gres=gpu:4", "--sbatch=--comment=a", "--sbatch=--comment=b", "--signal-seconds=0")
    assert str(caught.value).splitlines()[1:4] == [
        "  --signal-seconds: 0 is too small; use 1 or more",
        "  --sbatch: --gres is set already; use --gpus-per-node",
        "  --sbatch: '--comment=a' and '--comment=b' are one option; leave one of them out",
    ]


def test_impossible_resources_cannot_be_made_elsewhere_either():
    with pytest.raises(ConfigError, match="--minutes: -1 is too small"):
        Resources(minutes=-1)


def test_a_single_task_keeps_queue_and_environment():
    job = read("--nodes=8", "--gpus-per-node=8", "--cpus-per-task=12", "--memory-gb=960", "--exclusive", "--account=a",
               "--setup=module load x")  # fmt: skip
    task = as_single_task(job, cpus=4)
    assert (task.nodes, task.num_tasks, task.gpus_per_node, task.cpus_per_task, task.memory_gb) == (1, 1, 0, 4, 40)
    assert (task.account, task.setup, task.exclusive) == ("a", ("module load x",), False)
