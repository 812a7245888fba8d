"""Quarantine: from where on a sample is left out."""

from avff.data.quarantine import Quarantine, Quarantined

BATCH = 4


def quarantine(*entries):
    return Quarantine(entries, samples_per_step=BATCH)


def test_from_the_next_step_on_and_at_the_very_position(shard_directory):
    row, other = shard_directory.rows[:2]
    entry = Quarantined(row.key, row.shard, position=9, reason="took too long")  # in step 2, places 8 to 11
    listed = quarantine(entry)
    left_out = [position for position in range(20) if listed.reason(row, position) == "took too long"]
    assert left_out == [9, *range(12, 20)]
    assert not any(listed.reason(other, position) for position in range(20))


def test_the_same_key_in_another_tar_is_another_sample(shard_directory):
    row = shard_directory.rows[0]
    listed = quarantine(Quarantined(row.key, "shard-000009.tar", 0, "gone"))
    assert listed.reason(row, 0) is None
    assert listed.reason(row._replace(shard="shard-000009.tar"), 8) == "gone"


def test_a_longer_list_leaves_the_old_one_alone(shard_directory):
    row = shard_directory.rows[0]
    late, early = Quarantined(row.key, row.shard, 9, "late"), Quarantined(row.key, row.shard, 2, "early")
    short = quarantine(late)
    long = short.with_([early, late])
    assert short.entries == (late,) and long.entries == (early, late)
    assert short.reason(row, 5) is None and long.reason(row, 5) == "early"
    assert long.reason(row, 9) == "early"


def test_every_position_of_one_step_has_its_own_entry(shard_directory):
    row = shard_directory.rows[0]
    listed = quarantine(Quarantined(row.key, row.shard, 4, "first"), Quarantined(row.key, row.shard, 6, "second"))
    assert [listed.reason(row, position) for position in (4, 5, 6, 7, 8)] == ["first", None, "second", None, "first"]
