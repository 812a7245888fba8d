import pytest

from avff.doctor import compare
from avff.doctor.check import Status
from avff.doctor.nodes import Node, nodes_of, where


def node(*cpus: set[int]) -> Node:
    return Node(name="n1", number=0, ranks=tuple(range(len(cpus))), cpus=tuple(map(frozenset, cpus)))


@pytest.mark.parametrize(
    ("offset", "status"),
    [(0.002, Status.OK), (-3.0, Status.WARN), (500.0, Status.FAIL)],
    ids=["good", "off", "far off"],
)
def test_a_wrong_clock_is_named(offset, status):
    answer = compare.clocks({"n1": 0.0, "n2": 0.001, "n3": offset})
    assert answer.status is status
    assert answer.value.startswith("n3") == (status is not Status.OK)
    assert answer.measures[0].number == pytest.approx(1000 * abs(offset))


def test_what_differs_is_named_with_both_values():
    facts = {
        "n1": {"torch": "2.11.0", "avff": "a"},
        "n2": {"torch": "2.10.0", "avff": "a"},
        "n3": {"torch": "2.11.0", "avff": "a"},
    }
    answer = compare.agreement(facts)
    assert answer.status is Status.FAIL
    assert answer.value == "torch: 2.11.0 on n1 n3, 2.10.0 on n2"


def test_a_node_that_could_not_say_is_not_called_different():
    assert compare.agreement({"n1": {"torch": "2.11.0"}, "n2": {}}).status is Status.OK


@pytest.mark.parametrize(
    ("cpus", "num_workers", "status"),
    [
        ([{0, 1}, {2, 3}], 1, Status.OK),
        ([{0, 1, 2, 3}, {0, 1, 2, 3}], 1, Status.OK),
        ([{0, 1}, {0, 1}], 1, Status.WARN),
        ([{0}, {0}], 0, Status.FAIL),
    ],
    ids=["own cores", "shared cores", "too few", "one for two"],
)
def test_cores_of_all_ranks_of_a_node_are_counted_together(cpus, num_workers, status):
    assert compare.cpus(node(*cpus), num_workers).status is status


def test_ranks_that_did_not_come_are_named():
    assert compare.attendance([0, 1, 2, 3], 4).status is Status.OK
    assert compare.attendance([0, 1, 6], 8).value == "ranks 2-5, 7 of 8 did not come"


def test_a_batch_that_does_not_divide_says_what_does(tiny_config):
    assert compare.batch(tiny_config(), 2).value == "4 clips = 2 ranks x 1 x 2"
    answer = compare.batch(tiny_config(), 3)
    assert answer.status is Status.FAIL
    assert "rank count among 1, 2, 4" in answer.value


def test_ranks_are_grouped_by_machine_also_where_two_have_one_name():
    def hello(host: str, boot: str) -> dict:
        return {"host": host, "boot": boot, "cpus": [0]}

    nodes = nodes_of({0: hello("gpu", "x"), 1: hello("gpu", "y"), 2: hello("gpu", "x"), 3: hello("cpu", "z")})
    assert [(one.name, one.ranks) for one in nodes] == [("gpu", (0, 2)), ("gpu#2", (1,)), ("cpu", (3,))]
    assert where(1, nodes) == "rank 1 (gpu#2)"
