import json

import pytest

from avff.doctor.check import Status
from avff.doctor.collective import Result, read_result
from avff.doctor.judge_collective import judge_all_reduce, judge_devices, judge_links
from avff.doctor.nodes import Node

NODES = [Node(name=f"n{i + 1}", number=i, ranks=(2 * i, 2 * i + 1), cpus=(frozenset({0}),) * 2) for i in range(3)]
REDUCES = [(4096, 1e-4), (64 * 2**20, 0.1)]


def results(**of_rank_3) -> dict[int, Result]:
    """Six good ranks on three nodes, one of them changed."""
    good = {"stage": "done", "backend": "nccl", "device": "H100 0", "reduces": REDUCES, "transport": "IB"}
    found = {rank: {**good, "gpu_id": f"GPU-{rank}", "teraflops": 600.0, "links": []} for rank in range(6)}
    for place, node in enumerate(NODES):
        found[node.first_rank]["links"] = [(NODES[place - 1].first_rank, 10e9)]
    found[3] |= of_rank_3
    return {rank: Result(**values) for rank, values in found.items()}


def test_bandwidth_and_time_per_step_are_said():
    answer = judge_all_reduce(results(), NODES, gradient_bytes=64 * 2**20, has_fabric=True)
    assert answer.status is Status.OK
    assert answer.value == "6 ranks, nccl over IB, gradients 67 MB"
    latency, bandwidth, step = answer.measures
    assert (latency.number, latency.unit) == (pytest.approx(0.1), "ms")
    assert bandwidth.number == pytest.approx(2 * 5 / 6 * 64 * 2**20 / 0.1 / 1e9)
    assert step.number == pytest.approx(0.1)


def test_gradients_that_take_too_long_are_noticed():
    slow = judge_all_reduce(results(), NODES, gradient_bytes=64 * 2**20 * 11, has_fabric=False)
    assert slow.status is Status.WARN


def test_sockets_beside_infiniband_cards_are_noticed():
    with_sockets = {rank: Result(**{**vars(one), "transport": "Socket"}) for rank, one in results().items()}
    assert judge_all_reduce(with_sockets, NODES, 0, has_fabric=True).status is Status.WARN
    assert judge_all_reduce(with_sockets, NODES, 0, has_fabric=False).status is Status.OK


def test_the_rank_that_came_least_far_is_named_first():
    found = results(stage="join", error="no route to host")
    found[5] = Result(stage="reduce", error="timed out")
    answer = judge_all_reduce(found, NODES, 0, has_fabric=False)
    assert answer.status is Status.FAIL
    assert answer.value == "rank 3 (n2) failed at 'join': no route to host; so did rank 5"


def test_of_ranks_that_came_equally_far_the_first_to_fail_is_named():
    """Rank 0 only waited for rank 4, until it gave up."""
    found = results()
    found[0] = Result(stage="join", error="wait timeout", seconds=60.0)
    found[4] = Result(stage="join", error="no such interface", seconds=1.5)
    assert judge_all_reduce(found, NODES, 0, has_fabric=False).value.startswith("rank 4 (n3) failed at 'join': no such")


def test_slow_links_are_named():
    assert judge_links(results(), NODES).status is Status.OK
    found = results()
    found[4] = Result(**{**vars(found[4]), "links": [(2, 1e9)]})
    answer = judge_links(found, NODES)
    assert answer.status is Status.WARN
    assert answer.value == "slow: n2 to n3 1.00 GB/s"


def test_ranks_on_one_gpu_and_slow_gpus_are_named():
    assert judge_devices(results(), NODES).status is Status.OK
    assert judge_devices(results(gpu_id="GPU-2"), NODES).value.startswith("ranks 2-3 on n2 share H100 0")
    assert "rank 3 (n2) 400 TFLOP/s" in judge_devices(results(teraflops=400.0), NODES).value


def test_the_same_gpu_number_on_two_nodes_is_not_shared():
    assert judge_devices(results(gpu_id="GPU-0"), NODES).status is Status.OK


def test_a_child_says_one_line_behind_what_nccl_says():
    output = "n1:7:7 [0] NCCL INFO Using network IB\n" + json.dumps(vars(Result(stage="done", backend="nccl")))
    assert read_result(0, output, "", "done") == Result(stage="done", backend="nccl", transport="IB")


def test_a_child_that_crashed_leaves_its_last_words():
    answer = read_result(-11, "", "one\ntwo\nthree\nSegmentation fault\n", "join")
    assert answer.stage == "join"
    assert answer.error == "the process ended with -11: two / three / Segmentation fault"
