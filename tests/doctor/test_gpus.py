"""Texts as nvidia-smi prints them; no GPU is needed to read them."""

import pytest

from avff.doctor.check import Status
from avff.doctor.gpus import judge_gpus, judge_health, judge_topology, judge_users, parse_gpus, parse_topology

H100 = "NVIDIA H100 80GB HBM3, GPU-{number}, 81559, {used}, 550.54.15, {errors}"


def listing(*, count: int = 2, used: int = 4, errors: str = "0") -> str:
    return "".join(f"{number}, {H100.format(number=number, used=used, errors=errors)}\n" for number in range(count))


TOPOLOGY = (
    "\t\x1b[4mGPU0\tGPU1\tGPU2\tNIC0\tCPU Affinity\tNUMA Affinity\x1b[0m\n"
    "GPU0\t X \tNV18\t{first}\tPIX\t0-31\t0\n"
    "GPU1\tNV18\t X \t{second}\tSYS\t0-31\t0\n"
    "GPU2\t{first}\t{second}\t X \tSYS\t32-63\t1\n"
    "NIC0\tPIX\tSYS\tSYS\t X \t\t\n\nLegend:\n\n  X    = Self\n  NV#  = Connection traversing NVLinks\n"
)


def test_the_list_is_read_also_where_errors_are_not_counted():
    first, second = parse_gpus(listing(errors="[N/A]"))
    assert (first.number, second.uuid, first.total_megabytes) == (0, "GPU-1", 81559)
    assert first.uncorrected_errors is None


@pytest.mark.parametrize(
    ("count", "num_ranks", "status", "words"),
    [
        (2, 2, Status.OK, "2 x NVIDIA H100 80GB HBM3 80 GiB, driver 550.54.15"),
        (2, 8, Status.FAIL, "for 8 ranks"),
        (8, 2, Status.WARN, "6 of them for no rank"),
        (0, 2, Status.FAIL, "none, and this model is not for CPUs"),
    ],
)
def test_gpus_are_compared_with_ranks(count, num_ranks, status, words):
    answer = judge_gpus(parse_gpus(listing(count=count)), num_ranks, needs_gpu=True, driver_is_there=False)
    assert answer.status is status
    assert words in answer.value


def test_a_job_that_asked_for_no_gpu_on_a_gpu_node_is_told_so():
    answer = judge_gpus([], 1, needs_gpu=False, driver_is_there=True)
    assert answer.status is Status.FAIL
    assert "--gpus-per-node" in answer.fix


def test_a_tiny_model_may_do_without():
    assert judge_gpus([], 2, needs_gpu=False, driver_is_there=False).status is Status.OK


def test_memory_errors_name_the_gpu():
    assert judge_health(parse_gpus(listing())).status is Status.OK
    broken = judge_health(parse_gpus(listing(count=1) + "1, " + H100.format(number=1, used=0, errors=3)))
    assert broken.status is Status.FAIL
    assert broken.value == "uncorrected memory errors on GPU 1"


def test_other_programs_are_named_and_invisible_ones_noticed():
    found = parse_gpus(listing())
    assert judge_users(found, "").status is Status.OK
    assert "python (process 77) on GPU 1" in judge_users(found, "GPU-1, 77, python, 3000\n").value
    hidden = judge_users(parse_gpus(listing(used=40000)), "")
    assert hidden.status is Status.WARN
    assert "GPU 0, 1" in hidden.value


def test_each_pair_of_gpus_is_read_once():
    assert parse_topology(TOPOLOGY.format(first="SYS", second="PHB")) == ["NV18", "SYS", "PHB"]


@pytest.mark.parametrize(
    ("text", "status", "value"),
    [
        (TOPOLOGY.format(first="NV18", second="NV18"), Status.OK, "NVLink between 3 pairs"),
        (
            TOPOLOGY.format(first="NV18", second="SYS"),
            Status.WARN,
            "NVLink between 2 pairs, CPU sockets between 1 pairs",
        ),
        ("\tGPU0\tCPU Affinity\nGPU0\t X \t0-31\n", Status.OK, "one GPU"),
    ],
)
def test_missing_nvlinks_are_noticed(text, status, value):
    answer = judge_topology(text)
    assert (answer.status, answer.value) == (status, value)
