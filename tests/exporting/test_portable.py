"""`avff.load_model`: the same frames, sound and scores as building, evaluating and predicting."""

import itertools

import numpy as np
import pytest
import torch
from exported import BUILD
from media_files import Pictures, noise, steady, write_media
from PIL import Image

import avff
from avff.build_config import BuildConfig
from avff.building.samples import build_samples
from avff.building.sources import single_source
from avff.data.views import AVView
from avff.errors import CheckpointError, ConfigError, MediaError
from avff.evaluation.aggregate import aggregate, probability
from avff.exporting.reading import Window, bicubic_square, read_windows
from avff.inference.load import load_detector
from avff.inference.predict import predict_file
from avff.media.crops import square_crop

FPS = 25
# Without loss but for the change of colour space, so that shards and files can be compared closely.
LOSSLESS = {"profile": "evidence", "crf": 0, "min_seconds": 1.6}
FRAME_BUILD = BuildConfig(mode="frame", segment_seconds=2.0, **LOSSLESS)
BOX_BUILD = BuildConfig(mode="boxes", side_pixels=64, **LOSSLESS)


def talk(seconds: float, size: tuple[int, int] = (96, 64)) -> np.ndarray:
    """Smooth pictures that change all the time; size is width and height."""
    x, y = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    frames = [
        [128 + 90 * np.sin((x * (1 + c) + y + 3 * index) / 17) for c in range(3)]
        for index in range(round(seconds * FPS))
    ]
    return np.array(frames).transpose(0, 2, 3, 1).astype(np.uint8)


def write_clip(path, seconds=2.0, size=(96, 64), sound_seconds=None):
    sounds = [noise(seconds if sound_seconds is None else sound_seconds)] if sound_seconds != 0 else []
    return write_media(path, [steady(talk(seconds, size), FPS)], sounds)


def test_the_clips_of_a_stored_sample_score_as_they_do_in_evaluation(make_run, make_sample):
    run_dir = make_run()
    detector, model = load_detector(str(run_dir), device="cpu"), avff.load_model(run_dir)
    clips = detector.view.evaluation_clips(make_sample("a", num_frames=30))
    expected = np.array([score.logits for score in detector.score(clips)])
    batch = detector.view.collate(clips)
    found = torch.stack(model(batch.video_BTHWC, batch.waveform_BN), dim=1).double().numpy()
    assert len(clips) > 4 and np.ptp(expected[:, 0]) > 1e-3
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert (model.threshold, model.build) == (detector.threshold, detector.build) == (0.4, BUILD)


def test_whole_frames_give_the_verdict_of_avff_predict(make_run, tmp_path):
    run_dir = make_run(build=FRAME_BUILD)
    path = write_clip(tmp_path / "long.mov", seconds=5.0)  # stretches of 2, 2 and 1 s
    expected = predict_file(path, load_detector(str(run_dir), device="cpu"))
    found = avff.load_model(run_dir).predict(path)
    windows = [(s.start_seconds + w.start_seconds, w.logits.overall) for s in expected.segments for w in s.windows]
    assert [w.start_seconds for w in found.windows] == [start for start, _ in windows]
    assert [w.fake_probability for w in found.windows] == pytest.approx(
        [probability(logit) for _, logit in windows], abs=2e-3
    )
    assert found.fake_probability == pytest.approx(expected.fake_probability, abs=2e-3)
    assert (found.verdict, found.threshold) == (expected.verdict, 0.4)
    best = max(aggregate(s.windows)[s.key].logits.overall for s in expected.segments if s.windows)
    assert found.fake_probability == pytest.approx(probability(best), abs=2e-3)
    (skipped,) = found.skipped
    assert skipped.startswith("4.00 to ") and skipped.endswith(" s: shorter than the 1.6 s that are needed")


@pytest.mark.parametrize("size", [(96, 64), (64, 80)])
def test_boxes_and_centre_squares_give_the_windows_of_shards(make_run, tmp_path, size):
    """The sound to the bit, the picture up to its change of colour space; a box half a pixel aside is another one."""
    run_dir = make_run(build=BOX_BUILD)
    model = avff.load_model(run_dir)
    path = write_clip(tmp_path / "clip.mov", size=size)
    centre, half = np.array(size) / 2, min(size) / 2 / BOX_BUILD.video.crop_factor
    box = (*(centre - half), *(centre + half))
    (sample,) = build_samples(single_source(path), BOX_BUILD, {0: np.array([[0.0, *box], [1.0, *box], [2.0, *box]])})
    expected = AVView(model.config.clip).evaluation_clips(sample)

    def difference(boxes) -> int:
        windows = list(read_windows(path, model.config.clip, model.build, boxes))
        assert [w.start_seconds for w in windows] == [clip.start_seconds for clip in expected]
        assert all(np.array_equal(w.waveform_N, c.waveform_N) for w, c in zip(windows, expected, strict=True))
        pairs = zip(windows, expected, strict=True)
        return max(np.abs(w.video_THWC.astype(int) - c.video_THWC).max() for w, c in pairs)

    aside = np.array([box]) + np.array([0.5, 0, 0.5, 0])
    assert difference(np.array([box])) <= 1
    assert difference(None) <= 1  # the centre square is the crop about that box
    assert difference(aside) > 5


def test_a_verdict_on_more_than_a_face_says_what_was_shown(make_run, tmp_path):
    model = avff.load_model(make_run(build=BOX_BUILD))
    path = write_clip(tmp_path / "clip.mov")
    whole, boxed = model.predict(path), model.predict(path, box=(20, 10, 60, 50))
    assert whole.shown == "middle square" and "middle square of each picture was taken as a face crop" in str(whole)
    assert boxed.shown == "box" and "face crop" not in str(boxed)


def test_every_picture_finds_its_own_box(make_run, tmp_path):
    frames = np.zeros((50, 64, 96, 3), np.uint8)
    boxes = np.array([[20 + i, 20, 36 + i, 36] for i in range(50)], dtype=float)
    for frame, (x0, _, x1, _) in zip(frames, boxes.astype(int), strict=True):
        frame[20:36, x0:x1] = 250
    jitter = [0.0, *(i / FPS + 0.004 * (-1) ** i for i in range(1, 50))]
    path = write_media(tmp_path / "moving.mov", [Pictures(jitter, frames)], [noise(2.0)])
    model = avff.load_model(make_run(build=BOX_BUILD))
    centre = slice(20, 28)  # of 48 pixels: well inside the face, if the square follows it
    for window in read_windows(path, model.config.clip, model.build, boxes):
        assert isinstance(window, Window) and window.video_THWC[:, centre, centre].min() > 230
    still = next(read_windows(path, model.config.clip, model.build, boxes[:1]))
    assert isinstance(still, Window) and still.video_THWC[:, centre, centre].min() < 50


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ((10, 10, 5, 20), r"box 0 is \[10.0, 10.0, 5.0, 20.0\]; it has to be x0 < x1"),
        ((10, 10, 20), r"boxes of shape \(1, 3\)"),
        ([(10, 10, 20, 20)] * 49, "49 boxes for (at least )?50 pictures"),
        ([(10, 10, 20, 20)] * 51, "51 boxes for 50 pictures"),
        ([(10, 10, 20, float("nan"))], "box 0 is"),
    ],
)
def test_boxes_that_do_not_fit_are_refused(make_run, tmp_path, box, message):
    path = write_clip(tmp_path / "clip.mov")
    with pytest.raises(MediaError, match=f"clip.mov: {message}"):
        avff.load_model(make_run(build=BOX_BUILD)).predict(path, box=box)


def test_a_box_for_a_model_of_whole_frames_is_refused(make_run, tmp_path):
    with pytest.raises(MediaError, match=r"clip\.mov: a box was given, but the model reads whole frames"):
        avff.load_model(make_run(build=FRAME_BUILD)).predict(write_clip(tmp_path / "clip.mov"), box=(1, 2, 3, 4))


@pytest.mark.parametrize(
    ("name", "make", "reason", "message"),
    [
        ("gone.mp4", lambda path: path, "MISSING", "no such file"),
        ("mute.mov", lambda path: write_clip(path, sound_seconds=0), "NO_AUDIO", "holds no sound"),
        ("short.mov", lambda path: write_clip(path, seconds=1.2), "TOO_SHORT", "shorter than the 1.6 s"),
        ("torn.mp4", lambda path: path.write_bytes(b"\0" * 5000), "UNDECODABLE", "cannot be decoded"),
        ("voice.mov", lambda path: write_media(path, [], [noise(2.0)]), "NO_VIDEO", "holds no video stream"),
    ],
)
def test_a_file_that_cannot_be_judged_is_named_with_the_reason(make_run, tmp_path, name, make, reason, message):
    make(tmp_path / name)
    with pytest.raises(MediaError, match=f"{name}: .*{message}") as caught:
        avff.load_model(make_run()).predict(tmp_path / name)
    assert caught.value.reason == reason


def test_a_stretch_without_sound_is_named_and_not_judged(make_run, tmp_path):
    path = write_clip(tmp_path / "half.mov", seconds=4.0, sound_seconds=1.9)
    found = avff.load_model(make_run(build=FRAME_BUILD)).predict(path)
    (skipped,) = found.skipped
    assert skipped.startswith("2.00 to ") and skipped.endswith(" s: no sound there")
    assert max(window.stop_seconds for window in found.windows) <= 2.0
    assert f"not judged: {skipped}" in str(found) and f"half.mov: {found.verdict}" in str(found)


def test_scores_do_not_depend_on_the_batch(make_run, tmp_path):
    path = write_clip(tmp_path / "clip.mov", seconds=4.0)
    model = avff.load_model(make_run(build=BOX_BUILD))
    one, all_at_once = (model.predict(path, batch_size=size) for size in (1, 100))
    assert len(one.windows) > 3
    for window, other in zip(one.windows, all_at_once.windows, strict=True):
        assert window.start_seconds == other.start_seconds
        assert window.fake_probability == pytest.approx(other.fake_probability, abs=1e-6)


def test_tensors_in_features_out(make_run):
    model = avff.load_model(make_run(build=None, validation=None))
    clip = model.config.clip
    video_BTHWC = torch.randint(0, 256, (3, clip.num_frames, 40, 40, 3), dtype=torch.uint8)
    waveform_BN = torch.rand(3, clip.num_samples) - 0.5
    video_BSLD, audio_BSLD = model.features(video_BTHWC, waveform_BN)
    assert (video_BSLD.shape, audio_BSLD.shape) == ((3, 4, 4, 96), (3, 4, 8, 96))
    changed = video_BTHWC.clone()
    changed[1] = 255 - changed[1]
    same = torch.isclose(model.features(changed, waveform_BN)[0], video_BSLD, atol=1e-5).flatten(1).all(dim=1)
    assert same.tolist() == [True, False, True]
    with pytest.raises(ConfigError, match="clips hold 7 frames"):
        model(video_BTHWC[:, :7], waveform_BN)
    with pytest.raises(CheckpointError, match="do not record how their clips were cut"):
        model.predict("any.mp4")


def test_the_default_threshold_is_said(make_run, tmp_path):
    found = avff.load_model(make_run(validation=None)).predict(write_clip(tmp_path / "clip.mov"))
    assert (found.threshold, found.threshold_is_default) == (0.5, True)
    assert "default threshold 0.5000" in str(found)


def test_weights_without_heads_are_no_detector(make_run, tmp_path):
    with pytest.raises(CheckpointError, match="is of stage 'pretrain', which has no real/fake heads"):
        avff.load_model(make_run("pretrain"))
    with pytest.raises(CheckpointError, match="not a run folder"):
        avff.load_model(tmp_path / "nothing")


@pytest.mark.parametrize(("half_side", "side"), itertools.product((9.3, 30.0, 70.21), (32, 64)))
def test_squares_are_those_of_pillow(half_side, side):
    """The picture of the crops: at most one grey level apart, on at most a pixel in 500."""
    noise_HWC = np.random.default_rng(3).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    smooth_HWC = np.asarray(Image.fromarray(noise_HWC).resize((120, 90)))
    for picture_HWC in (noise_HWC, smooth_HWC):
        for centre in ((60.0, 45.0), (51.37, 44.81), (3.0, 88.5)):
            ours = bicubic_square(picture_HWC, np.array(centre), half_side, side).astype(int)
            theirs = square_crop(picture_HWC, np.array(centre), half_side, side)
            assert np.abs(ours - theirs).max() <= 1 and (ours != theirs).mean() < 0.002
