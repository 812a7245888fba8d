"""Several ranks at one real store, each a connection of this process."""

import threading

import pytest

from avff.doctor.exchange import NEWS, join


@pytest.fixture
def ranks():
    first = join("127.0.0.1", 0, rank=0, world_size=3, limit_seconds=60)
    others = [join("127.0.0.1", first.port, rank=rank, world_size=3, limit_seconds=60) for rank in (1, 2)]
    return [first, *others]


def test_values_of_all_ranks_come_together(ranks):
    for rank in reversed(ranks):
        rank.put("hello", {"rank": rank.rank})
    assert ranks[0].collect("hello", range(3), quiet_seconds=60) == {rank: {"rank": rank} for rank in range(3)}


def test_a_rank_without_news_is_left_out(ranks):
    ranks[0].put("hello", 1)
    ranks[2].put("hello", 3)
    assert ranks[0].collect("hello", range(3), quiet_seconds=0.1) == {0: 1, 2: 3}


def test_news_keep_a_rank_in(ranks):
    """Rank 1 needs longer than a silent rank may, and says in between what it does."""
    tick = threading.Event()

    def work() -> None:
        for number in range(5):
            ranks[1].put(NEWS, f"check {number}")
            tick.wait(0.8)
        ranks[1].put("hello", "late")

    thread = threading.Thread(target=work)
    thread.start()
    assert ranks[0].collect("hello", [1], quiet_seconds=3.0) == {1: "late"}
    thread.join()
    assert ranks[0].news_of(1) == "check 4"
    assert ranks[0].news_of(2) == ""


def test_what_rank_0_publishes_reaches_all_and_silence_is_an_error(ranks):
    ranks[0].publish("go", [1, 2])
    assert ranks[2].await_published("go", limit_seconds=60) == [1, 2]
    with pytest.raises(RuntimeError, match="timeout"):
        ranks[1].await_published("never", limit_seconds=0.1)
