import socket

import pytest

from avff.doctor import network
from avff.doctor.check import Status


@pytest.mark.parametrize(
    ("addresses", "status"),
    [
        (["10.0.0.7"], Status.OK),
        (["127.0.1.1"], Status.FAIL),
        (["127.0.1.1", "10.0.0.7"], Status.OK),
        ([], Status.FAIL),
    ],
    ids=["reachable", "Debian's loopback", "both", "unknown"],
)
def test_a_host_name_that_means_the_host_itself_is_found(addresses, status):
    answer = network.judge_host_name("n1", addresses, num_nodes=2, interface="ib0", chosen="")
    assert answer.status is status
    assert ("GLOO_SOCKET_IFNAME=ib0" in answer.fix) == (status is Status.FAIL)


def test_a_host_name_does_not_matter_to_one_node_or_with_an_interface_chosen():
    assert network.judge_host_name("n1", [], num_nodes=1, interface="", chosen="").status is Status.OK
    assert network.judge_host_name("n1", [], num_nodes=2, interface="", chosen="eth0").status is Status.OK


@pytest.mark.parametrize(
    ("addresses", "num_nodes", "status"),
    [
        (["10.0.0.1"], 2, Status.OK),
        (["127.0.0.1"], 1, Status.OK),
        (["127.0.0.1"], 2, Status.FAIL),
        ([], 2, Status.FAIL),
    ],
)
def test_the_meeting_point_is_one_for_all(addresses, num_nodes, status):
    assert network.judge_main_address("n1", addresses, num_nodes).status is status


@pytest.mark.parametrize(
    ("names", "status"),
    [("eth0", Status.OK), ("eth", Status.OK), ("=eth0", Status.OK), ("^lo,docker", Status.OK), ("ib0", Status.FAIL)],
)
def test_chosen_interfaces_are_up(names, status):
    assert network.judge_interfaces({"NCCL_SOCKET_IFNAME": names}, {"lo", "eth0"}).status is status


def test_names_and_interfaces_of_this_machine():
    assert network.lookup("localhost")
    assert network.lookup("no-such-host.invalid") == []
    assert network.interface_towards("127.0.0.1") in {name for _, name in socket.if_nameindex()}
