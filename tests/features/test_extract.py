"""`avff extract`: what the numbers are of, which rows they belong to, and what is refused."""

import json
import shutil

import numpy as np
import pytest
import torch
import webdataset

from avff.data.shards import read_sample
from avff.data.views import AVView
from avff.errors import CheckpointError, ConfigError, EvaluationError, ShardError
from avff.features.extract import describe_extraction
from avff.features.layout import read_features
from avff.models.build import build_model
from avff.models.patches import patchify_audio, patchify_video
from avff.models.weights import load_weights, save_weights
from avff.preprocess import Preprocess
from avff.schema import FakeSegments

FEATURES = ("video", "audio", "a2v", "v2a")


@pytest.fixture(scope="module")
def few(make_sample, write_directory, tmp_path_factory):
    """Seven samples in two shards: one window, several, two faces, and three that nothing can be made of."""
    samples = [
        make_sample("one", num_frames=8, split="train"),
        make_sample("long", num_frames=20, split="test", is_fake=None, video_is_fake=1, audio_is_fake=0),
        make_sample("noface", split="test", status=["NO_FACE"], is_fake=1),
        make_sample("two", tracks=[(0, 8), (4, 12)], speakers=[None, True], split="test", is_fake=1),
        make_sample("mute", split="test", status=["NO_AUDIO"], tracks=[(0, 16)]),
        make_sample("short", split="test", num_frames=4),
        make_sample("last", split="test", tracks=[]),
    ]
    return write_directory(tmp_path_factory.mktemp("few") / "shards", samples, num_shards=2)


def expected_features(config, sample):
    """Features of each window by hand: (windows, slices, width) per feature, every slice averaged on its own."""
    model = build_model(config).eval()
    clips = AVView(config.clip).evaluation_clips(sample)
    inputs = Preprocess(config.clip, config.data.augment)(AVView(config.clip).collate(clips), training=False)
    with torch.no_grad():
        video = model.video_encoder(patchify_video(inputs.video_BTCHW, config.model), inputs.seed_B)
        audio = model.audio_encoder(patchify_audio(inputs.mel_BMF, config.model), inputs.seed_B)
        tokens = {"video": video, "audio": audio, "a2v": model.a2v(audio), "v2a": model.v2a(video)}
    return {
        name: np.stack([[one[k].numpy().mean(axis=0) for k in range(config.clip.num_slices)] for one in values])
        for name, values in tokens.items()
    }


@pytest.mark.parametrize(
    ("stage", "sections"), [("pretrain", {}), ("finetune", {}), ("finetune", {"finetune": {"encoders": "lora"}})]
)
def test_every_level_equals_a_forward_pass_by_hand(few, write_weights, run_extraction, tiny_config, stage, sections):
    weights = write_weights(stage, **sections)
    found = {
        level: read_features(
            run_extraction(few.path, name=level, weights=weights, features=FEATURES, level=level).output
        )
        for level in ("clip", "slice", "window")
    }
    config = tiny_config(stage, **sections)
    row = next(row for row in few.rows if row.key == "long")
    expected = expected_features(config, read_sample(few, row))
    mine = {level: [i for i, r in enumerate(table.rows) if r.key == "long"] for level, table in found.items()}
    assert len(mine["clip"]) == 1 and len(mine["window"]) == len(mine["slice"]) == len(expected["video"]) == 4
    for name in FEATURES:
        windows_WSD = expected[name]
        assert windows_WSD.shape == (4, config.clip.num_slices, 96)
        assert np.allclose(found["slice"].arrays[name][mine["slice"]], windows_WSD, atol=2e-6)
        assert np.allclose(found["window"].arrays[name][mine["window"]], windows_WSD.mean(axis=1), atol=2e-6)
        assert np.allclose(found["clip"].arrays[name][mine["clip"]], windows_WSD.mean(axis=(0, 1)), atol=2e-6)
        assert not np.allclose(windows_WSD[:, 0], windows_WSD[:, 1], atol=1e-3), "slices would be interchangeable"


def test_slice_k_of_the_sound_is_the_kth_run_of_time(
    make_sample, write_directory, write_weights, run_extraction, tmp_path
):
    """Without blocks to mix them, a burst of noise in one slice can change that slice's tokens alone."""
    weights = write_weights()
    tensors, sidecar = load_weights(weights)
    for name, tensor in tensors.items():
        if ".blocks." in name and name.endswith((".proj.weight", ".proj.bias", ".fc2.weight", ".fc2.bias")):
            tensor.zero_()
    save_weights(weights, tensors, sidecar)
    quiet_N = np.random.default_rng(0).normal(0, 300, 25600).astype(np.int16)
    samples = []
    for k in (None, 0, 2):
        sound_N = quiet_N.copy()
        if k is not None:
            sound_N[6400 * k + 2000 : 6400 * k + 4400] *= 20
        samples.append(
            make_sample(f"burst{k}", num_frames=8, sound_N=sound_N, video_THWC=np.zeros((8, 64, 64, 3), np.uint8))
        )
    write_directory(tmp_path / "bursts", samples)
    table = read_features(run_extraction(tmp_path / "bursts", weights=weights, level="slice").output)
    base_SD, first_SD, third_SD = table.arrays["audio"]
    assert np.abs(first_SD - base_SD).max(axis=1).argsort()[-1] == 0
    assert np.abs(third_SD - base_SD).max(axis=1).tolist()[:2] == [0, 0] and np.abs(third_SD - base_SD)[2].max() > 0.1
    assert np.array_equal(table.arrays["video"][0], table.arrays["video"][2])


def test_rows_say_what_they_show(few, run_extraction):
    table = read_features(run_extraction(few.path, level="window").output)
    assert [(r.key, r.track, r.start_seconds) for r in table.rows] == [
        ("one", 0, 0.0),
        *[("long", 0, start) for start in (0.0, 0.8, 1.6, 2.4)],
        *[("two", 1, start) for start in (0.8, 1.6)],
        *[("last", -1, start) for start in (0.0, 0.8, 1.6)],
    ]
    assert all(r.stop_seconds == r.start_seconds + 1.6 and r.num_windows == 1 for r in table.rows)
    labels = {r.key: (r.is_fake, r.video_is_fake, r.audio_is_fake, r.category, r.split) for r in table.rows}
    assert labels["long"] == (1, 1, 0, "FVRA", "test")
    assert labels["two"] == (1, None, None, None, "test")
    assert labels["one"] == (0, 0, 0, "RVRA", "train")
    assert table.rows[0].group_ids == ["person_one"] and table.rows[0].shard == "shard-000000.tar"
    lines = (table.path / "index.jsonl").read_text().splitlines()
    assert [json.loads(line)["row"] for line in lines] == list(range(10))


def test_all_tracks_have_rows_of_their_own(few, run_extraction):
    table = read_features(run_extraction(few.path, tracks="all").output)
    assert [(r.key, r.track, r.num_windows) for r in table.rows] == [
        ("one", 0, 1),
        ("long", 0, 4),
        ("two", 0, 1),
        ("two", 1, 2),
        ("last", -1, 3),
    ]


def test_windows_carry_their_own_labels(make_sample, write_directory, run_extraction, tmp_path):
    forged = FakeSegments(video=[[2.5, 3.0]])
    sample = make_sample("partly", is_fake=None, video_is_fake=1, audio_is_fake=0, fake_segments_seconds=forged)
    write_directory(tmp_path / "partly", [sample])
    windows = read_features(run_extraction(tmp_path / "partly", name="w", level="window").output).rows
    assert [(row.is_fake, row.category) for row in windows] == [(0, "RVRA"), (0, "RVRA"), (1, "FVRA")]
    (clip,) = read_features(run_extraction(tmp_path / "partly", name="c").output).rows
    assert (clip.is_fake, clip.category, clip.num_windows) == (1, "FVRA", 3)


def test_what_cannot_be_used_is_listed_and_never_a_row(few, run_extraction, tmp_path):
    broken = shutil.copytree(few.path, tmp_path / "broken")
    row = next(row for row in few.rows if row.key == "one")
    member = next(member for member in row.members if member.name == "flac")
    with (broken / row.shard).open("r+b") as file:
        file.seek(member.offset + member.length // 2)
        file.write(b"\xff\x00\xff")
    done = run_extraction(broken)
    report = json.loads((done.output / "extract.json").read_text())
    assert report["undecided"]["samples"] == {"noface": ["NO_FACE"], "mute": ["NO_AUDIO"], "short": ["TOO_SHORT"]}
    assert report["undecided"]["by_status"] == {"NO_AUDIO": 1, "NO_FACE": 1, "TOO_SHORT": 1}
    assert list(report["unreadable"]["samples"]) == ["one"] and "crc32" in report["unreadable"]["samples"]["one"]
    assert (report["num_rows"], report["num_samples"], report["expected"]) == (3, 3, 7)
    table = read_features(done.output)
    assert [row.key for row in table.rows] == ["long", "two", "last"]
    assert all(np.abs(values).max(axis=1).min() > 0.01 for values in table.arrays.values())
    said = describe_extraction(done)
    assert (
        "3 of 7 samples" in said and "1 NO_FACE, 1 TOO_SHORT, 1 unreadable" in said and f"delete {done.output}" in said
    )


@pytest.mark.slow
def test_neither_batches_nor_workers_change_the_numbers(shard_directory, run_extraction):
    options = [{"batch_size": 1}, {"batch_size": 7, "num_workers": 2}, {"batch_size": 64, "part_samples": 5}]
    tables = [
        read_features(
            run_extraction(shard_directory.path, name=str(i), level="slice", features=FEATURES, **option).output
        )
        for i, option in enumerate(options)
    ]
    for other in tables[1:]:
        assert other.rows == tables[0].rows
        for name in FEATURES:
            assert np.abs(other.arrays[name] - tables[0].arrays[name]).max() < 1e-6


def test_arrays_are_plain_and_mapped(few, run_extraction):
    done = run_extraction(few.path, level="slice")
    array = np.load(done.output / "video.npy", mmap_mode="r")
    assert isinstance(array, np.memmap) and (array.dtype, array.shape) == (np.float32, (10, 4, 96))
    assert sorted(path.name for path in done.output.iterdir()) == [
        "audio.npy",
        "extract.json",
        "index.jsonl",
        "video.npy",
    ]


@pytest.mark.parametrize("level", ["clip", "slice"])
def test_side_shards_join_with_their_source_in_stock_webdataset(few, write_weights, run_extraction, level):
    weights = write_weights()
    plain = read_features(run_extraction(few.path, name="npy", weights=weights, level=level).output)
    done = run_extraction(few.path, name="side", weights=weights, level=level, form="shards")
    names = sorted(path.name for path in few.path.glob("*.tar"))
    assert sorted(path.name for path in done.output.glob("*.tar")) == names
    joined = []
    for name in names:
        side = iter(webdataset.WebDataset(str(done.output / name), shardshuffle=False).decode())
        features = next(side, None)
        for sample in webdataset.WebDataset(str(few.path / name), shardshuffle=False):
            if features is not None and features["__key__"] == sample["__key__"]:
                joined.append((json.loads(sample["json"]), features))
                features = next(side, None)
        assert features is None, "every key was found, in the source's order"
    assert [metadata["key"] for metadata, _ in joined] == ["one", "long", "two", "last"]
    assert all(features.keys() >= {"video.npy", "audio.npy"} for _, features in joined)
    stacked = np.concatenate([features["video.npy"] for _, features in joined])
    assert np.array_equal(stacked, plain.arrays["video"])
    read = read_features(done.output)
    assert read.rows == plain.rows and all(np.array_equal(read.arrays[n], plain.arrays[n]) for n in plain.arrays)


def test_a_split_alone(few, run_extraction):
    table = read_features(run_extraction(few.path, split="train").output)
    assert [row.key for row in table.rows] == ["one"]
    with pytest.raises(EvaluationError, match=r"no clip of split 'val' .* splits there: test, train"):
        run_extraction(few.path, name="other", split="val")


# ------------------------------------------------------------------------------------------- checkpoints


def test_an_adapted_file_gives_features_of_its_encoders(few, write_weights, run_extraction):
    """Heads and A2V are random there, so only what the encoders say can be had."""
    random = {"a2v.norm.weight": "not in MARLIN", "video_head.fc1.weight": "no source has it"}
    weights = write_weights("finetune", drop=("a2v.", "video_head."), new=random)
    assert run_extraction(few.path, weights=weights, features=("video", "audio", "v2a")).report["num_samples"] == 4
    match = (
        r"'a2v' needs a2v, but a2v is left to a random start, 1 tensors such as a2v\.norm\.weight \(not in MARLIN\); "
        r"ask for --features video audio v2a"
    )
    with pytest.raises(CheckpointError, match=match):
        run_extraction(few.path, name="other", weights=weights, features=("video", "a2v"))


def test_an_encoder_alone_is_enough(few, write_weights, run_extraction):
    drop = tuple(
        f"{part}." for part in ("audio_encoder", "a2v", "v2a", "video_decoder", "audio_decoder", "temperature")
    )
    weights = write_weights(drop=drop)
    table = read_features(run_extraction(few.path, weights=weights, features=("video",)).output)
    assert list(table.arrays) == ["video"]
    with pytest.raises(CheckpointError, match=r"'v2a' needs v2a, but it holds no v2a; ask for --features video$"):
        run_extraction(few.path, name="other", weights=weights, features=("v2a",))


def test_torn_and_foreign_weights_are_named(few, write_weights, run_extraction, tmp_path):
    weights = write_weights(drop=("video_encoder.stack.norm.",))
    with pytest.raises(CheckpointError, match=r"video_encoder: missing key stack\.norm\.weight \[96\]"):
        run_extraction(few.path, weights=weights)
    with pytest.raises(CheckpointError, match=r"marlin\.pt: not a run folder"):
        run_extraction(few.path, weights=tmp_path / "marlin.pt")
    assert not (tmp_path / "out").exists()


def test_broken_weights_are_no_features(few, write_weights, run_extraction):
    weights = write_weights()
    tensors, sidecar = load_weights(weights)
    tensors["video_encoder.stack.norm.bias"][0] = torch.nan
    save_weights(weights, tensors, sidecar)
    with pytest.raises(CheckpointError, match=r"video features of 'one' are not finite"):
        run_extraction(few.path, weights=weights)


# ------------------------------------------------------------------------------------------- options


def test_options_that_cannot_be_are_refused(few, run_extraction, tmp_path):
    with pytest.raises(ConfigError, match=r"--batch-size is 0"):
        run_extraction(few.path, batch_size=0)
    copy = shutil.copytree(few.path, tmp_path / "copy")
    with pytest.raises(ConfigError, match=r"--format shards mirrors one shard directory, got 2"):
        run_extraction(few.path, copy, form="shards")
    with pytest.raises(ShardError, match=r"key 'one' is in .*read these directories one by one"):
        run_extraction(few.path, copy)


def test_nothing_usable_is_an_error(make_sample, write_directory, run_extraction, tmp_path):
    write_directory(tmp_path / "blind", [make_sample("blind", status=["NO_FACE"])])
    with pytest.raises(EvaluationError, match=r"none of 1 samples has features, the first for: .*NO_FACE"):
        run_extraction(tmp_path / "blind")
