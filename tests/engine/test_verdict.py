"""Whom the sentences about a hang and a broken connection name."""

import pytest

from avff.engine.notices import PHASES, Notice, Place
from avff.engine.verdict import about_hang, about_loss, about_silent_board


def notice(rank: int, step: int, phase: str, tick: int = 0, **said) -> Notice:
    return Notice(rank, f"node{rank:02}", 7, Place(step, phase, tick), **said)


def test_notices_survive_the_board():
    sent = notice(3, 12, "saving", 2, kind="stopped", words="no room")
    assert Notice.decode(sent.encode().encode()) == sent


def test_places_are_ordered_as_a_step_passes():
    order = ["writing metrics", "validating", "saving", "reading data", "computing", "agreeing", "applying"]
    places = [Place(4, "applying"), *(Place(5, phase) for phase in order), Place(5, "applying", 1), Place(6, order[0])]
    assert sorted(places, key=lambda place: place.order) == places
    assert set(order) < set(PHASES)


def test_the_rank_behind_is_named():
    notices = [notice(0, 1200, "computing"), notice(1, 1200, "reading data"), notice(2, 1200, "computing")]
    assert about_hang(notices, (), 600) == (
        "rank 1 (host node01) has made no progress for 600 s: step 1200, reading data; "
        "rank 0 (host node00) waits at step 1200, computing"
    )


@pytest.mark.parametrize(("place", "verb"), [((5, "computing"), "have"), ((6, "computing"), "has")])
def test_several_ranks_behind_are_named_together(place, verb):
    notices = [notice(0, 5, "computing"), notice(1, *place), notice(2, 6, "computing", 1)]
    names = "rank 0 (host node00), rank 1 (host node01)" if verb == "have" else "rank 0 (host node00)"
    assert about_hang(notices, (), 60).startswith(f"{names} {verb} made no progress for 60 s: step 5, computing")


def test_a_silent_rank_is_named_before_one_that_is_behind():
    notices = [notice(0, 5, "reading data"), notice(1, 5, "computing")]
    assert about_hang(notices, [1], 60).startswith("rank 1 (host node01) has shown no sign of life for 60 s")


def test_a_rank_that_an_error_stopped_is_named_before_all():
    notices = [
        notice(0, 5, "reading data"),
        notice(1, 5, "computing"),
        notice(2, 4, "saving", kind="stopped", words="why"),
    ]
    assert about_hang(notices, [1], 60) == "rank 2 (host node02) stopped at step 4, saving: why"


def test_nobody_is_blamed_when_all_stand_at_one_place():
    notices = [notice(rank, 5, "agreeing") for rank in range(8)]
    assert about_hang(notices, (), 60).startswith("no rank has made progress for 60 s: all 8 are at step 5, agreeing")


def test_a_single_process_names_its_place():
    assert about_hang([notice(0, 5, "reading data")], (), 60) == "no progress for 60 s: step 5, reading data"


def test_a_broken_connection_is_explained_by_an_error_or_by_silence_or_not_at_all():
    lost = [notice(0, 5, "computing", kind="lost", words="closed"), notice(1, 5, "computing")]
    assert about_loss(lost, ()) == ""
    assert about_loss(lost, [1]).startswith("rank 1 (host node01) has gone: killed")
    stopped = [lost[0], notice(1, 5, "computing", kind="stopped", words="KeyError: 'a bug'")]
    assert about_loss(stopped, [0]) == "rank 1 (host node01) stopped at step 5, computing: KeyError: 'a bug'"


def test_many_silent_ranks_are_counted():
    gone = about_loss([notice(rank, 5, "computing") for rank in range(9)], range(9))
    assert "rank 2 (host node02) and 6 more have gone" in gone


def test_a_silent_board_means_rank_0_and_keeps_its_last_words():
    assert "rank 0 (host node00) does not answer" in about_silent_board(notice(0, 5, "saving"))
    assert about_silent_board(notice(0, 5, "saving", kind="stopped", words="why")).endswith("saving: why")
