"""Generated talking heads: mouths follow their own voice, forgeries touch their modality alone, labels leak nothing."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from PIL import Image

from avff.errors import ConfigError
from avff.media.synthetic.faces import MOUTH_Y
from avff.media.synthetic.forgery import MAX_SHIFT_SECONDS, MIN_SHIFT_SECONDS, blend_mouth, draw_shift, vocode
from avff.media.synthetic.heads import render
from avff.media.synthetic.mouth import HALF_HEIGHT, HALF_WIDTH, MouthCurve, region_coordinates
from avff.media.synthetic.talking_heads import CATEGORIES, DEMO_PLAN, HeadRecipe, SplitPlan, plan_recipes
from avff.media.synthetic.voice import SAMPLE_RATE_HZ
from avff.media.synthetic.writing import Clip
from avff.seeding import generator

SEED = 11


def recipe(number: int, category: str = "RVRA", index: int = 0) -> HeadRecipe:
    return HeadRecipe(SEED, f"person_{number:04d}", f"person_{number ^ 1:04d}", index, category, "train")


@cache
def made(head: HeadRecipe) -> Clip:
    return head.make()


def seen_opening(frames_THWC: np.ndarray, head: HeadRecipe) -> np.ndarray:
    """Measures the mouth from pixels: lips, teeth and the dark between them stand out from skin."""
    take = head.take()
    x, y = round(take.centre[0]), round(take.centre[1] + (MOUTH_Y + 0.1) * take.pixels_per_unit)
    reach = round(0.4 * take.pixels_per_unit)
    mouths = frames_THWC[:, y - reach : y + reach, x - reach : x + reach].astype(np.float32)
    return mouths.mean(axis=3).std(axis=(1, 2))


def heard_loudness(waveform: np.ndarray, num_frames: int) -> np.ndarray:
    """Returns the square root of the amplitude around the middle of each frame."""
    hop = SAMPLE_RATE_HZ // 25
    return waveform[: num_frames * hop].reshape(num_frames, hop).std(axis=1) ** 0.5


def lagged_correlation(seen_T: np.ndarray, heard_T: np.ndarray, lag: int) -> float:
    stop = len(seen_T) - abs(lag)
    first, second = (seen_T[lag:], heard_T[:stop]) if lag >= 0 else (seen_T[:stop], heard_T[-lag:])
    return float(np.corrcoef(first, second)[0, 1])


def agreement(head: HeadRecipe) -> list[float]:
    """Returns the correlation of mouth and sound at lags of -15 to 15 frames."""
    clip = made(head)
    seen_T = seen_opening(clip.frames_THWC, head)
    heard_T = heard_loudness(clip.waveform, len(seen_T))
    return [lagged_correlation(seen_T, heard_T, lag) for lag in range(-15, 16)]


def test_a_true_mouth_follows_its_voice_without_delay():
    correlations = np.mean([agreement(recipe(number)) for number in range(3)], axis=0)
    assert correlations[15] > 0.6
    assert abs(int(np.argmax(correlations)) - 15) <= 1


@pytest.mark.parametrize("category", ["RVFA", "FVRA", "FVFA"])
def test_a_forged_clip_disagrees(category: str):
    at_zero = [agreement(recipe(number, category))[15] for number in range(2)]
    assert np.mean(at_zero) < 0.3


def test_a_forged_mouth_changes_pixels_of_the_mouth_region_only():
    true, forged = recipe(0), recipe(0, "FVRA")
    true_clip, forged_clip = made(true), made(forged)
    assert np.array_equal(true_clip.waveform, forged_clip.waveform)
    changed_HW = (true_clip.frames_THWC != forged_clip.frames_THWC).any(axis=(0, 3))
    rows, columns = np.nonzero(changed_HW)
    take = true.take()
    reach = 0.25 * take.pixels_per_unit  # head motion
    middle_y = take.centre[1] + (MOUTH_Y + 0.1) * take.pixels_per_unit
    assert len(rows) > 100
    assert np.abs(columns - take.centre[0]).max() < HALF_WIDTH * take.pixels_per_unit + reach
    assert np.abs(rows - middle_y).max() < HALF_HEIGHT * take.pixels_per_unit + reach


def test_forged_sound_changes_no_pixel():
    true_clip, forged_clip = made(recipe(1)), made(recipe(1, "RVFA"))
    assert np.array_equal(true_clip.frames_THWC, forged_clip.frames_THWC)
    assert not np.allclose(true_clip.waveform, forged_clip.waveform, atol=1e-3)


def test_a_blend_leaves_a_trace_inside_its_seam_even_where_the_mouth_is_right():
    x_1W, y_H1 = region_coordinates(40.0)
    mouths_THWC = generator(1, "mouth").uniform(0, 1, (3, y_H1.size, x_1W.size, 3)).astype(np.float32)
    change_HW = np.abs(blend_mouth(generator(1, "blend"), mouths_THWC, mouths_THWC, 40.0) - mouths_THWC).max((0, 3))
    assert change_HW[y_H1.size // 2, x_1W.size // 2] > 0.01
    assert change_HW[[0, -1]].max() == 0 and change_HW[:, [0, -1]].max() == 0


def test_a_vocoder_smears_but_keeps_loudness_and_timing():
    time = np.arange(SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ
    voice = np.sin(2 * np.pi * 3000 * time) * (np.abs(time - 0.5) < 0.2)
    voice = (voice / np.sqrt(np.mean(voice**2))).astype(np.float32)
    vocoded = vocode(generator(1, "vocoder"), voice)
    assert np.sqrt(np.mean(vocoded**2)) == pytest.approx(1.0, rel=1e-4)
    assert np.abs(np.fft.rfft(vocoded)).argmax() == pytest.approx(3000, abs=50)
    before = slice(int(0.275 * SAMPLE_RATE_HZ), int(0.285 * SAMPLE_RATE_HZ))
    assert np.abs(vocoded[before]).max() > 10 * np.abs(voice[before]).max() + 1e-3
    middle = np.average(time, weights=vocoded**2)
    assert middle == pytest.approx(0.5, abs=0.01)


def test_shifts_go_both_ways_and_are_never_too_short_to_see():
    shifts = np.array([draw_shift(generator(number, "shift")) for number in range(100)])
    assert np.abs(shifts).min() >= MIN_SHIFT_SECONDS and np.abs(shifts).max() <= MAX_SHIFT_SECONDS
    assert 30 < (shifts > 0).sum() < 70


def test_two_shifts_never_meet_in_one_clip():
    heads = [recipe(number, "FVFA") for number in range(40)]
    assert {head.sound_method for head in heads} == {"time_shift", "voice_swap"}
    assert not any((head.sound_method, head.mouth_method) == ("time_shift", "mouth_time_shift") for head in heads)


def test_length_picture_and_loudness_do_not_know_the_category():
    for number in range(2):
        heads = [recipe(number, category) for category in CATEGORIES]
        assert len({head.take() for head in heads}) == 1
        sounds = [head.waveform() for head in heads]
        assert len({len(sound) for sound in sounds}) == 1
        loudness = [np.sqrt(np.mean(sound**2)) for sound in sounds]
        assert np.ptp(loudness) < 0.01 * np.mean(loudness)


@pytest.mark.slow
def test_peaks_of_forged_sound_are_as_high_as_those_of_true_sound():
    peaks = np.array(
        [[np.abs(recipe(n, c).waveform()).max() for c in ("RVRA", "RVFA")] for n in range(30)], dtype=np.float64
    )
    ratio = np.log(peaks[:, 1] / peaks[:, 0])
    assert abs(ratio.mean()) < 3 * ratio.std() / np.sqrt(len(ratio)) + 0.02


@pytest.mark.parametrize(
    ("category", "target", "video", "audio"),
    [("RVRA", 0, 0, 0), ("RVFA", 1, 0, 1), ("FVRA", 1, 1, 0), ("FVFA", 1, 1, 1)],
)
def test_labels_of_a_row(category: str, target: int, video: int, audio: int):
    row = recipe(4, category).metadata_row()
    assert (row["target"], row["video_is_fake"], row["audio_is_fake"]) == (target, video, audio)
    assert bool(row["methods"]) == bool(target)
    assert category not in str(row["video_name"])


def test_a_borrowed_voice_names_both_people():
    heads = [recipe(number, "RVFA") for number in range(20)]
    for head in heads:
        people = str(head.metadata_row()["group_ids"]).split(";")
        assert people == ([head.person, head.partner] if head.sound_method == "voice_swap" else [head.person])
    assert {head.sound_method for head in heads} == {"time_shift", "voice_swap"}


def test_people_of_different_splits_never_meet():
    people: dict[str, set[str]] = {}
    names = set()
    for head in plan_recipes(DEMO_PLAN, SEED):
        people.setdefault(head.split, set()).update(str(head.metadata_row()["group_ids"]).split(";"))
        names.add(head.video_name)
    assert len(people["test"]) >= 20
    assert sum(len(group) for group in people.values()) == len(set.union(*people.values()))
    assert len(names) == len(plan_recipes(DEMO_PLAN, SEED))


def test_people_and_clips_differ():
    first, again, other = recipe(0), recipe(0, index=1), recipe(1)
    assert not np.array_equal(first.face().skin, other.face().skin)
    assert np.array_equal(first.face().skin, again.face().skin)
    assert first.take() != again.take()
    assert not np.array_equal(first.waveform()[:60000], again.waveform()[:60000])


@pytest.mark.parametrize(
    ("split", "plan", "message"),
    [
        ("train", SplitPlan(num_people=3, clips_per_person={"RVRA": 1}), "train has 3 people.*use 4 or 2"),
        ("tain", SplitPlan(num_people=2, clips_per_person={"RVRA": 1}), "'tain' is unknown; choose train, val or test"),
        ("val", SplitPlan(num_people=2, clips_per_person={"REAL": 1}), "category REAL; choose from RVRA"),
    ],
)
def test_impossible_plans_are_named(split: str, plan: SplitPlan, message: str):
    with pytest.raises(ConfigError, match=message):
        plan_recipes({split: plan}, SEED)


def _found(number: int, num_frames: int) -> list[bool]:
    """Returns per frame whether MTCNN sees exactly one face, confidently."""
    mtcnn = pytest.importorskip("facenet_pytorch").MTCNN(keep_all=True, min_face_size=40, device="cpu")
    head = recipe(number)
    take = replace(head.take(), num_frames=num_frames, frames_per_second=1.0)
    curve = MouthCurve(*(values_T[::25][:num_frames] for values_T in head.true_curve()))
    frames_THWC = render(take, head.face(), curve)
    _, probabilities = mtcnn.detect([Image.fromarray(frame) for frame in frames_THWC])
    return [len(found) == 1 and found[0] is not None and found[0] >= 0.9 for found in probabilities]


def test_a_detector_finds_the_faces():
    assert np.mean([_found(number, 2) for number in range(6)]) == 1.0


@pytest.mark.slow
def test_a_detector_finds_nearly_every_face():
    assert np.mean([all(_found(number, 3)) for number in range(100, 164)]) >= 0.98
