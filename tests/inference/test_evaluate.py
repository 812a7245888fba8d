"""`avff evaluate` end to end on stored clips with random weights."""

import json
import re
import shutil
from dataclasses import replace

import pytest

from avff.build_config import BuildConfig
from avff.data.plan import build_plan
from avff.data.selection import open_directories
from avff.data.trained_on import inherited_records, trained_groups, training_records
from avff.errors import ConfigError, EvaluationError, ShardError
from avff.evaluation.rows import read_rows, write_jsonl
from avff.inference.evaluate import evaluate
from avff.inference.load import load_detector


def evaluate_run(run, shards, output, num_workers=0, **options):
    detector = load_detector(str(run), device="cpu")
    return evaluate(detector, shards, output, num_workers=num_workers, progress=False, **options)


@pytest.fixture
def run_evaluation(make_run, tmp_path):
    run = make_run()

    def evaluate_here(shards, name="out", **options):
        return evaluate_run(run, shards, tmp_path / name, **options)

    return evaluate_here


def test_rows_summary_and_page_agree(shard_directory, run_evaluation):
    result = run_evaluation([shard_directory.path])
    rows = read_rows(result.output / "rows.jsonl")
    assert rows == read_rows(result.output / "rows.csv") == result.rows
    assert [row.key for row in rows] == [row.key for row in shard_directory.rows if row.split == "test"]
    summary = json.loads((result.output / "summary.json").read_text())
    assert (summary["scored"], summary["expected"], summary["overall"]["num_clips"]) == (5, 5, 5)
    assert all(row.num_windows == 3 and row.seconds_spent > 0 for row in rows)
    assert all(row.predicted == (row.fake_probability >= 0.5) for row in rows)
    page = result.page.read_text()
    assert f"{summary['overall']['auc']['value']:.3f}" in page
    assert summary["checkpoint_sha256"][0] in page and shard_directory.fingerprint in page
    for name in ("ROC", "Reliability", "Worst mistakes", "category FVFA", "scored 5 / 5"):
        assert name in page
    assert not re.search(r"<script|https?://(?!www\.w3\.org|purl\.org|creativecommons\.org)", page), "needs no network"


@pytest.mark.slow
def test_results_do_not_depend_on_batch_size_or_workers(shard_directory, make_run, tmp_path):
    run = str(make_run())
    found = [
        evaluate_run(run, [shard_directory.path], tmp_path / str(i), **options).rows
        for i, options in enumerate([{"batch_size": 1, "num_workers": 0}, {"batch_size": 7, "num_workers": 2}])
    ]
    for one, other in zip(*found, strict=True):
        assert one.fake_logit == pytest.approx(other.fake_logit, abs=1e-5)
        same = {
            "fake_logit": 0.0,
            "fake_probability": 0.0,
            "seconds_spent": 0,
            "video_fake_logit": 0,
            "audio_fake_logit": 0,
        }
        assert replace(one, **same) == replace(other, **same)


def test_the_same_clip_twice_scores_the_same(make_sample, write_directory, run_evaluation, tmp_path):
    first = make_sample("a", split="test", is_fake=1)
    twin = first._replace(metadata=replace(first.metadata, key="b"))
    write_directory(tmp_path / "twins", [first, twin])
    a, b = run_evaluation([tmp_path / "twins"]).rows
    assert a.fake_logit == pytest.approx(b.fake_logit, abs=1e-6)


def test_undecidable_clips_are_listed_and_get_no_score(make_sample, write_directory, run_evaluation, tmp_path):
    samples = [
        make_sample("face", split="test"),
        make_sample("noface", split="test", status=["NO_FACE"], is_fake=1),
        make_sample("mute", split="test", status=["NO_AUDIO"], tracks=[(0, 16)]),
        make_sample("short", split="test", num_frames=4),
    ]
    write_directory(tmp_path / "mixed", samples)
    result = run_evaluation([tmp_path / "mixed"])
    by_key = {row.key: row for row in result.rows}
    assert {key: row.status for key, row in by_key.items()} == {
        "face": ["OK"],
        "noface": ["NO_FACE"],
        "mute": ["NO_AUDIO"],
        "short": ["TOO_SHORT"],
    }
    assert all(by_key[key].fake_logit is None and by_key[key].predicted is None for key in ("noface", "mute", "short"))
    assert result.summary["undecided"]["by_status"] == {"NO_AUDIO": 1, "NO_FACE": 1, "TOO_SHORT": 1}
    assert "noface" in result.page.read_text()


def test_the_clip_takes_its_highest_track(make_sample, write_directory, make_run, tmp_path):
    both = make_sample("both", split="test", tracks=[(0, 8), (8, 8)])
    write_directory(tmp_path / "faces", [both])
    run = str(make_run())
    (row,) = evaluate_run(run, [tmp_path / "faces"], tmp_path / "out").rows
    detector = load_detector(run, device="cpu")
    scores = {s.track: s.logits.overall for s in detector.score(detector.view.evaluation_clips(both))}
    assert scores.keys() == {0, 1} and scores[0] != scores[1]
    assert (row.num_windows, row.track) == (2, max(scores, key=scores.get))
    assert row.fake_logit == pytest.approx(max(scores.values()), abs=1e-5)


def test_a_broken_clip_refuses_metrics_but_keeps_the_rows(shard_directory, run_evaluation, tmp_path):
    broken = shutil.copytree(shard_directory.path, tmp_path / "broken")
    row = next(row for row in shard_directory.rows if row.split == "test")
    member = next(member for member in row.members if member.name == "flac")
    with (broken / row.shard).open("r+b") as file:
        file.seek(member.offset + member.length // 2)
        file.write(b"\xff\x00\xff")
    with pytest.raises(EvaluationError, match=rf"scored 4 / 5 clips.*\n  {row.key}: .*crc32"):
        run_evaluation([broken])
    assert len(read_rows(tmp_path / "out/rows.jsonl")) == 4
    assert not (tmp_path / "out/summary.json").exists()
    allowed = run_evaluation([broken], allow_missing=True)
    assert (allowed.summary["scored"], allowed.summary["expected"]) == (4, 5)
    assert "1 clips are missing" in allowed.page.read_text()


def test_shards_of_another_build_are_refused_naming_both(shard_directory, make_run, tmp_path):
    run = make_run(build=BuildConfig(profile="evidence", mode="frame"))
    match = (
        r"checkpoint / shards\): mode frame / faces, profile evidence / pretrain, .*crf 12 / 18.*--allow-other-build"
    )
    with pytest.raises(EvaluationError, match=match):
        evaluate_run(run, [shard_directory.path], tmp_path / "out")
    allowed = evaluate_run(run, [shard_directory.path], tmp_path / "out", allow_other_build=True)
    assert any("built otherwise" in hazard for hazard in allowed.summary["hazards"])


def test_shards_slower_than_the_clip_are_refused(shard_directory, make_run, tmp_path):
    run = make_run(clip={"frames_per_second": 10.0, "hop_samples": 50})
    with pytest.raises(ConfigError, match=r"stored at 5 frames per second, clip\.frames_per_second is 10"):
        evaluate_run(run, [shard_directory.path], tmp_path / "out")


def test_an_empty_split_names_those_that_exist(shard_directory, run_evaluation):
    with pytest.raises(EvaluationError, match=r"no clip of split 'tset' .* splits there: test, train, val"):
        run_evaluation([shard_directory.path], split="tset")


def test_directories_that_share_keys_are_refused(shard_directory, run_evaluation, tmp_path):
    copy = shutil.copytree(shard_directory.path, tmp_path / "copy")
    with pytest.raises(ShardError, match=r"key 'test00' is in .*; read these directories one by one"):
        run_evaluation([shard_directory.path, copy])


@pytest.fixture
def records_of(tiny_config):
    """Returns what a run over some directories records: `records_of(paths, stage="finetune", **data settings)`."""

    def describe(paths, stage="finetune", **data):
        config = tiny_config(stage, data={"train": [{"path": str(path)} for path in paths], **data})
        directories = open_directories(config.data.train)
        return training_records(config, directories, build_plan(config, directories).samples)

    return describe


def test_people_whom_any_stage_trained_on_are_a_leak(make_sample, write_directory, make_run, records_of, tmp_path):
    """Stage 2 read real clips of a directory that stage 3 does not name, and of `val` too."""
    write_directory(
        tmp_path / "stage2",
        [
            make_sample("r", split="val", group_ids=["anna"]),
            make_sample("f", group_ids=["bert"], is_fake=1),
            make_sample("t", split="test", group_ids=["carl"]),
            make_sample("s", num_frames=4, group_ids=["dora"]),
        ],
    )
    write_directory(tmp_path / "stage3", [make_sample("o", group_ids=["olga"])])
    people = ["anna", "bert", "carl", "dora"]
    write_directory(tmp_path / "test", [make_sample(f"x{p}", split="test", group_ids=[p]) for p in people])
    records = records_of([tmp_path / "stage3"]) + records_of([tmp_path / "stage2"], "pretrain", train_split="")
    assert [record["num_samples"] for record in records] == [1, 1]
    run = make_run(trained_on=records, data={"train": [{"path": str(tmp_path / "stage3")}]})
    result = evaluate_run(run, [tmp_path / "test"], tmp_path / "out")
    (leak,) = [hazard for hazard in result.summary["hazards"] if hazard.startswith("Leak")]
    assert "1 of 4 clips" in leak and f"'anna' ({tmp_path / 'stage2'})" in leak


def test_training_shards_that_cannot_be_checked_are_named(make_sample, write_directory, records_of, tmp_path):
    names = ("gone", "torn", "rebuilt")
    for name in names:
        write_directory(tmp_path / name, [make_sample("a", group_ids=["anna"])])
    records = records_of([tmp_path / name for name in names])
    shutil.rmtree(tmp_path / "gone")
    (tmp_path / "torn" / "manifest.json").unlink()
    shutil.rmtree(tmp_path / "rebuilt")
    write_directory(tmp_path / "rebuilt", [make_sample("b", group_ids=["anna"])])
    old = inherited_records({}, tmp_path / "old.safetensors")
    groups, notes = trained_groups([*records, *old])
    assert groups == {} and len(notes) == 4
    found = " ".join(notes)
    assert "gone are not here" in found and "torn: has no manifest.json" in found
    assert "rebuilt were rebuilt since" in found and "old.safetensors do not record" in found


@pytest.mark.slow
def test_another_detector_is_drawn_beside_with_a_paired_difference(shard_directory, run_evaluation, tmp_path):
    first = run_evaluation([shard_directory.path], "first")
    other = [replace(row, detector="coin", fake_logit=0.0, fake_probability=0.5) for row in first.rows]
    write_jsonl(tmp_path / "coin.jsonl", other)
    result = run_evaluation([shard_directory.path], compare=[tmp_path / "coin.jsonl"])
    expected = first.summary["overall"]["auc"]["value"] - 0.5
    assert result.summary["differences"]["coin (tiny)"]["value"] == pytest.approx(expected)
    assert "coin (tiny)" in result.page.read_text()
    with pytest.raises(EvaluationError, match=r"is by avff \(tiny\), which is in the comparison already"):
        run_evaluation([shard_directory.path], compare=[first.output / "rows.jsonl"])
