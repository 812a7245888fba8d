"""Which ends of a job lead to another start."""

import pytest

from launch.requeue import MAX_LOST_STARTS, decisive, starts_again


def ends(*pairs: tuple[int, int]) -> list[dict]:
    return [{"code": code, "num_starts": num_starts} for code, num_starts in pairs]


@pytest.mark.parametrize(
    ("code", "of_training", "of_another"),
    [(0, False, False), (75, True, True), (2, False, False), (3, False, False), (130, False, False), (4, True, False),
     (1, True, False), (137, True, False), (143, True, False)],
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


@pytest.mark.parametrize(
    ("step_code", "codes", "expected"),
    [(0, [], 0), (0, [0, 0], 0), (1, [], 1), (75, [75, 75], 75), (137, [3], 3), (143, [1, 2], 2), (137, [4, 1], 137)],
)
def test_a_rank_that_says_why_decides(step_code, codes, expected):
    """Ranks that had to be killed, because another had ended, hide that one's reason in the code of srun."""
    assert decisive(step_code, codes) == expected
