"""What a run decided outlives its processes and maps updates to steps of the plan."""

import pytest

from avff.data.quarantine import Quarantined
from avff.engine.decisions import Decisions


@pytest.fixture
def reopen(tmp_path):
    return lambda: Decisions(tmp_path, samples_per_step=4)


def test_without_decisions_updates_read_their_own_steps(reopen):
    decisions = reopen()
    assert list(decisions.plan_steps(3, 7)) == [3, 4, 5, 6]
    assert not decisions.is_superseded(step=100, num_rewinds=0)


def test_a_rewind_leaves_out_what_was_read_since(reopen):
    decisions = reopen()
    decisions.rewound(from_step=10, spike_step=13, loss=9.0)
    steps = decisions.plan_steps(8, 13)
    assert list(steps) == [8, 9, 14, 15, 16]
    assert (steps[2], steps[-1], steps[1:3], len(steps)) == (14, 16, [9, 14], 5)
    assert [decisions.plan_step(step) for step in range(8, 13)] == list(steps)


def test_rewinds_add_up(reopen):
    decisions = reopen()
    decisions.rewound(from_step=10, spike_step=13, loss=9.0)
    decisions.rewound(from_step=12, spike_step=12, loss=9.0)  # update 12 read step 16
    assert list(decisions.plan_steps(9, 14)) == [9, 14, 15, 17, 18]


def test_a_rewind_to_before_an_earlier_one_goes_on_behind_all_that_was_read(reopen):
    decisions = reopen()
    decisions.rewound(from_step=10, spike_step=13, loss=9.0)
    decisions.rewound(from_step=5, spike_step=11, loss=9.0)  # update 11 read step 15
    assert list(decisions.plan_steps(4, 13)) == [4, 16, 17, 18, 19, 20, 21, 22, 23]


def test_decisions_are_there_after_a_restart_and_a_torn_line_is_not(reopen, tmp_path):
    decisions = reopen()
    decisions.rewound(from_step=10, spike_step=13, loss=9.0)
    clip = Quarantined("clip7", "shard-000001.tar", 42, "timed out")
    decisions.quarantined([clip])
    decisions.replanned(from_step=20, data_hash="abc")
    with (tmp_path / "decisions.jsonl").open("a") as file:
        file.write('{"kind": "rewo')
    again = reopen()
    assert list(again.plan_steps(8, 13)) == [8, 9, 14, 15, 16]
    assert again.rewinds == decisions.rewinds
    assert again.data_hashes == ["abc"]
    assert again.quarantine.entries == decisions.quarantine.entries == (clip,)
    again.quarantined([])
    assert len((tmp_path / "decisions.jsonl").read_text().splitlines()) == 3


def test_a_window_stays_left_out_when_a_replay_goes_back_further(reopen):
    """The checkpoint of step 10 was lost, and a second spike came before the replay had reached it."""
    decisions = reopen()
    decisions.rewound(from_step=10, spike_step=13, loss=9.0)
    decisions.rewound(from_step=4, spike_step=7, loss=9.0)
    assert list(decisions.plan_steps(3, 9)) == [3, 8, 9, 14, 15, 16]


def test_checkpoints_of_a_rewound_stretch_are_superseded(reopen):
    decisions = reopen()
    decisions.rewound(from_step=10, spike_step=13, loss=9.0)
    assert decisions.is_superseded(step=12, num_rewinds=0)
    assert not decisions.is_superseded(step=10, num_rewinds=0)
    assert not decisions.is_superseded(step=12, num_rewinds=1)
