"""Which ends of a job lead to another start."""

import pytest

from launch.requeue import MAX_FRUITLESS_STARTS, MAX_LOST_STARTS, decisive, what_keeps_from_starting


def ends(*pairs: tuple[int, int]) -> list[dict]:
    return [{"code": code, "num_starts": num_starts} for code, num_starts in pairs]


def starts_again(ends: list[dict], *, is_training: bool) -> bool:
    return not what_keeps_from_starting(ends, is_training=is_training)


@pytest.mark.parametrize(
    ("code", "of_training", "of_another"),
    [(0, False, False), (75, True, True), (2, False, False), (3, False, False), (130, False, False), (4, True, False),
     (1, True, False), (137, True, False), (143, True, True),
     (138, True, True), (140, True, True)],
)  # fmt: skip
def test_codes(code, of_training, of_another):
    assert starts_again(ends((code, 1)), is_training=True) == of_training
    assert starts_again(ends((code, 0)), is_training=False) == of_another


def test_crashes_before_training_began_end_soon():
    """`avff train` counts only the starts that it has recorded."""
    lost = [(1, 5)] * MAX_LOST_STARTS
    assert starts_again(ends(*lost[1:]), is_training=True)
    assert not starts_again(ends(*lost), is_training=True)


def test_crashes_of_recorded_starts_and_saves_are_no_lost_starts():
    assert starts_again(ends((1, 1), (1, 2), (1, 3), (1, 4)), is_training=True)
    assert starts_again(ends((75, 4), (75, 4), (75, 4), (75, 4)), is_training=True)
    assert starts_again(ends((75, 4), (1, 4), (1, 4)), is_training=True)


def test_signals_that_came_too_early_are_no_crashes():
    assert starts_again(ends(*[(143, 0)] * MAX_LOST_STARTS), is_training=True)
    assert starts_again(ends((1, 0), (143, 0), (1, 0)), is_training=True)


@pytest.mark.parametrize(("code", "is_training"), [(75, False), (140, False), (140, True)])
def test_what_never_gets_anywhere_ends(code, is_training):
    """A source that takes longer than a job, say; a training that is stopped counts by itself how far it came."""
    enough = [(code, 0)] * MAX_FRUITLESS_STARTS
    assert starts_again(ends(*enough[1:]), is_training=is_training)
    reason = what_keeps_from_starting(ends(*enough), is_training=is_training)
    assert reason.startswith(f"{MAX_FRUITLESS_STARTS} starts were stopped before they came to anything")
    assert ("--minutes" in reason) != is_training


@pytest.mark.parametrize(
    ("step_code", "codes", "expected"),
    [
        (0, [], 0),
        (0, [0, 0], 0),
        (1, [], 1),
        (75, [75, 75], 75),
        (137, [3], 3),
        (143, [1, 2], 2),
        (137, [4, 1], 137),
        (143, [], 143),
        (143, [1], 1),
        (143, [75, 75], 75),
    ],
)
def test_a_rank_that_says_why_decides(step_code, codes, expected):
    """Ranks that had to be killed, because another had ended, hide that one's reason in the code of srun."""
    assert decisive(step_code, codes) == expected
