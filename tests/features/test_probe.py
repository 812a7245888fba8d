"""`avff probe`: it finds what is there, nothing where nothing is, and keeps people apart."""

import json
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from avff.errors import EvaluationError
from avff.evaluation import metrics
from avff.features.classifiers import (
    STRENGTHS,
    Fold,
    auc_metric,
    balanced_accuracy_metric,
    choose_strength,
    disjoint_folds,
    linear_scores,
    neighbour_scores,
)
from avff.features.layout import read_features, write_output
from avff.features.parts import REPORT, Part, write_part
from avff.features.probe import NOTHING_TO_CHOOSE_BY, describe_probe, probe
from avff.features.rows import FeatureRow
from avff.schema import complete_labels

DIMENSIONS = 8


def make_row(index, split, video, audio, group=None, dataset="made"):
    is_fake, video, audio, category = complete_labels(None, video, audio)
    key = f"{dataset}_{split}{index:03}"
    return FeatureRow(
        key=key,
        dataset=dataset,
        split=split,
        source_key=key,
        shard="shard-000000.tar",
        track=0,
        start_seconds=0.0,
        stop_seconds=1.6,
        num_windows=1,
        is_fake=is_fake,
        video_is_fake=video,
        audio_is_fake=audio,
        category=category,
        methods=[],
        group_ids=[f"person_{key}" if group is None else group],
    )


@pytest.fixture
def write_features(tmp_path):
    """Writes a finished extraction: `write_features(rows, {feature: array}, name="features", form="npy", **settings)`."""

    def write(rows, arrays, name="features", form="npy", trained_on=(), **settings):
        folder = tmp_path / name
        (folder / ".parts").mkdir(parents=True)
        part = folder / ".parts" / "part-000000.safetensors"
        write_part(part, Part({n: v.astype(np.float32) for n, v in arrays.items()}, rows))
        settings = {"checkpoint_sha256": "0" * 64, "format": form, "level": "clip", **settings}
        report = {
            "checkpoint": "weights.safetensors",
            "checkpoint_sha256": settings["checkpoint_sha256"],
            "level": "clip",
            "non_commercial": False,
            "features": list(arrays),
            "settings": settings,
            "trained_on": list(trained_on),
            "files": write_output(folder, [part], list(arrays), form),
        }
        (folder / REPORT).write_text(json.dumps(report))
        return folder

    return write


def made_rows(counts, **options):
    """Rows of all four categories in turn, for each split."""
    kinds = [(0, 0), (1, 1), (0, 1), (1, 0)]
    return [make_row(i, split, *kinds[i % 4], **options) for split, count in counts.items() for i in range(count)]


def made_arrays(rows, rng):
    """`video` holds the video's label in its third value, among noise; `audio` holds nothing."""
    video_ND, audio_ND = rng.normal(size=(2, len(rows), DIMENSIONS))
    video_ND[:, 2] += [3.0 * (row.video_is_fake or 0) for row in rows]
    return {"video": video_ND, "audio": audio_ND}


COUNTS = {"train": 200, "val": 80, "test": 160}


@pytest.mark.parametrize("form", ["npy", "shards"])
def test_it_finds_what_is_there_and_nothing_where_nothing_is(write_features, form):
    rows = made_rows(COUNTS)
    folder = write_features(rows, made_arrays(rows, np.random.default_rng(0)), form=form)
    report = probe(folder, label="video_is_fake", progress=False).report
    for classifier in ("knn", "linear"):
        found = {name: result[classifier] for name, result in report["results"].items()}
        assert list(found) == ["video", "audio", "all"]
        assert found["video"]["auc"]["value"] > 0.85 and found["video"]["auc"]["low"] > 0.8
        assert found["all"]["auc"]["value"] > 0.8 and found["video"]["balanced_accuracy"]["value"] > 0.8
        assert found["audio"]["auc"]["low"] < 0.5 < found["audio"]["auc"]["high"]
    assert report["results"]["all"]["dimensions"] == 2 * DIMENSIONS
    assert report["test"] | {"groups": 160, "real": 80, "fake": 80, "rows": 160, "unknown": 0} == report["test"]
    assert report["strength_chosen_by"].endswith("split val") and report["hazards"] == []


def test_shuffled_labels_give_half(write_features):
    rng = np.random.default_rng(1)
    rows = made_rows({"train": 400, "test": 400})
    labels = rng.permutation([row.video_is_fake for row in rows]).tolist()
    arrays = made_arrays(rows, rng)
    shuffled = [replace(row, video_is_fake=label) for row, label in zip(rows, labels, strict=True)]
    report = probe(write_features(shuffled, arrays), label="video_is_fake", progress=False).report
    for result in report["results"].values():
        for classifier in ("knn", "linear"):
            assert 0.42 < result[classifier]["auc"]["value"] < 0.58
            assert 0.42 < result[classifier]["balanced_accuracy"]["value"] < 0.58


def test_categories_are_told_apart(write_features):
    rows = made_rows(COUNTS)
    arrays = {"video": np.random.default_rng(2).normal(size=(len(rows), DIMENSIONS))}
    arrays["video"][:, 0] += [4.0 * row.video_is_fake for row in rows]
    arrays["video"][:, 1] += [4.0 * row.audio_is_fake for row in rows]
    result = probe(write_features(rows, arrays), label="category", progress=False)
    found = result.report["results"]["video"]
    assert list(result.report["results"]) == ["video"] and result.report["classes"] == ["FVFA", "FVRA", "RVFA", "RVRA"]
    assert found["linear"]["auc"]["value"] > 0.97 and found["linear"]["balanced_accuracy"]["value"] > 0.85
    assert found["knn"]["auc"]["value"] > 0.95 and found["knn"]["balanced_accuracy"]["value"] > 0.8


def test_files_and_table_say_the_same(write_features, tmp_path):
    rows = made_rows(COUNTS)
    folder = write_features(rows, made_arrays(rows, np.random.default_rng(3)))
    result = probe(folder, k=5, output=tmp_path / "probed", progress=False)
    assert json.loads((tmp_path / "probed/probe.json").read_text()) == result.report
    assert result.png_path.read_bytes()[:4] == b"\x89PNG" and result.png_path.stat().st_size > 5000
    text = describe_probe(result.report)
    auc = result.report["results"]["video"]["linear"]["auc"]
    assert f"{auc['value']:.3f} [{auc['low']:.3f}, {auc['high']:.3f}]" in text
    assert (
        "is_fake, features per clip, k = 5" in text
        and "160 rows of 160 samples (40 real, 120 fake, 160 groups)" in text
    )
    assert probe(folder, k=5, progress=False).report == result.report, "the same numbers every time"
    assert (folder / "probe_is_fake/probe.json").is_file()


def test_unknown_labels_are_left_out_and_counted(write_features):
    rows = made_rows(COUNTS)
    rows = [replace(row, is_fake=None) if i % 10 == 0 else row for i, row in enumerate(rows)]
    report = probe(write_features(rows, made_arrays(rows, np.random.default_rng(4))), progress=False).report
    assert (report["train"]["rows"], report["train"]["unknown"]) == (180, 20)
    assert (report["test"]["rows"], report["test"]["unknown"]) == (144, 16)
    assert "16 of unknown label left out" in describe_probe(report)


# ------------------------------------------------------------------------------------------- people


def test_two_extractions_take_train_and_test(write_features):
    rng = np.random.default_rng(5)
    rows, others = made_rows({"train": 120, "test": 60}), made_rows({"": 80}, dataset="other")
    train = write_features(rows, made_arrays(rows, rng), "train")
    test = write_features(others, made_arrays(others, rng), "test", form="shards", split="all")
    report = probe(train, test, label="video_is_fake", progress=False).report
    assert report["test"]["rows"] == 80 and report["test"]["where"].endswith("/test, all rows")
    assert report["train"]["rows"] == 120 and report["results"]["video"]["linear"]["auc"]["value"] > 0.85


def test_people_of_the_training_rows_are_a_leak_and_samples_an_error(write_features):
    rng = np.random.default_rng(6)
    rows = made_rows({"train": 40})
    others = [
        make_row(i, "test", i % 2, 0, group=f"person_made_train{i:03}" if i < 3 else None, dataset="b")
        for i in range(40)
    ]
    train = write_features(rows, made_arrays(rows, rng), "train")
    test = write_features(others, made_arrays(others, rng), "test")
    (leak,) = probe(train, test, progress=False).report["hazards"]
    assert leak.startswith("Leak: 3 of 40 clips show a person") and "person_made_train000" in leak
    same = write_features(rows, made_arrays(rows, rng), "same")
    with pytest.raises(EvaluationError, match=r"40 samples are both in .*split train and in .*'made_train000'"):
        probe(train, same, progress=False)


def test_people_whom_the_network_was_trained_on_are_a_leak(write_features, shard_directory):
    record = {
        "path": str(shard_directory.path),
        "fingerprint": shard_directory.fingerprint,
        "splits": ["train"],
        "labels": "real",
        "min_seconds": 1.6,
    }
    rows = made_rows({"train": 40, "test": 40})
    rows[-1] = replace(rows[-1], group_ids=["person_train00"])  # real there, and in the split that was read
    rows[-2] = replace(rows[-2], group_ids=["person_test00"])
    arrays = made_arrays(rows, np.random.default_rng(7))
    (leak,) = probe(write_features(rows, arrays, trained_on=[record]), progress=False).report["hazards"]
    assert leak.startswith("The network that gives the features: Leak: 1 of 40") and str(shard_directory.path) in leak
    (note,) = probe(write_features(rows, arrays, "b", trained_on=[record | {"path": "gone"}]), progress=False).report[
        "hazards"
    ]
    assert "gone are not here" in note


def test_folds_share_no_group():
    rng = np.random.default_rng(8)
    groups_N = rng.integers(0, 12, 200)
    labels_N = rng.integers(0, 2, 200)
    folds = disjoint_folds(labels_N, groups_N)
    assert len(folds) == 5 and sorted(np.concatenate([f.choose_M for f in folds])) == list(range(200))
    for fit_N, choose_M in folds:
        assert not set(groups_N[fit_N]) & set(groups_N[choose_M])
    assert disjoint_folds(labels_N, np.zeros(200, int)) == []
    assert disjoint_folds(np.array([0, 1, 1, 1]), np.arange(4)) == [], "one real clip cannot be on both sides"


def test_without_val_c_is_chosen_over_people(write_features):
    rng = np.random.default_rng(9)
    rows = made_rows({"train": 120, "test": 80})
    few_people = [
        replace(row, group_ids=[f"p{i // 4 % 10}"]) if row.split == "train" else row for i, row in enumerate(rows)
    ]
    report = probe(write_features(few_people, made_arrays(rows, rng)), progress=False).report
    assert report["strength_chosen_by"] == "5 folds of different people" and report["validation"] is None
    chained = [
        replace(row, group_ids=[f"p{i}", f"p{i + 1}"]) if row.split == "train" else row for i, row in enumerate(rows)
    ]
    report = probe(write_features(chained, made_arrays(rows, rng), "chained"), progress=False).report
    assert report["hazards"] == [NOTHING_TO_CHOOSE_BY] and report["results"]["video"]["linear"]["strength"] == 0.1


# ------------------------------------------------------------------------------------------- arithmetic


def test_neighbours_vote_as_by_hand():
    rng = np.random.default_rng(10)
    blocks = [rng.normal(size=(30, 5)), 100 * rng.normal(size=(30, 3))]
    labels_N = np.array([0, 0, 1] * 10)
    found = neighbour_scores([b[:20] for b in blocks], labels_N[:20], [b[20:] for b in blocks], k=7)
    unit = np.hstack([b / np.linalg.norm(b, axis=1, keepdims=True) for b in blocks]) / np.sqrt(2)
    share_of = 1 / np.bincount(labels_N[:20])
    for row, scores in zip(unit[20:], found, strict=True):
        cosines = [float(row @ other) for other in unit[:20]]
        nearest = sorted(range(20), key=lambda i: -cosines[i])[:7]
        votes = np.zeros(2)
        for i in nearest:
            votes[labels_N[i]] += np.exp(cosines[i] / 0.07) * share_of[labels_N[i]]
        assert np.allclose(scores, votes / votes.sum())


def test_metrics_of_several_classes_are_scikit_learns():
    rng = np.random.default_rng(11)
    labels_N = rng.integers(0, 4, 200)
    scores = rng.dirichlet(np.ones(4), 200) + 0.3 * np.eye(4)[labels_N]
    scores /= scores.sum(axis=1, keepdims=True)
    unused = np.zeros(200)
    expected = roc_auc_score(labels_N, scores, multi_class="ovr", average="macro")
    assert metrics.point(auc_metric(scores, labels_N), unused, unused) == pytest.approx(expected)
    accuracy = balanced_accuracy_score(labels_N, scores.argmax(axis=1))
    assert metrics.point(balanced_accuracy_metric(scores, labels_N), unused, unused) == pytest.approx(accuracy)
    two_N = labels_N % 2
    auc = metrics.point(auc_metric(scores[:, :2], two_N), unused, unused)
    assert auc == pytest.approx(roc_auc_score(two_N, scores[:, 1]))


def test_the_strength_is_the_best_on_the_rows_to_choose_by():
    rng = np.random.default_rng(12)
    labels_N = rng.integers(0, 2, 90)
    features_ND = rng.normal(size=(90, 40)) + 0.4 * labels_N[:, None] * (np.arange(40) < 3)
    fold = Fold(np.arange(40), np.arange(40, 90))
    aucs = {
        strength: metrics.roc_auc(
            linear_scores(features_ND[:40], labels_N[:40], features_ND[40:], strength)[:, 1], labels_N[40:]
        )
        for strength in STRENGTHS
    }
    assert len(set(aucs.values())) > 2, "all as good would show nothing"
    assert choose_strength(features_ND, labels_N, [fold]) == max(aucs, key=aucs.get)


# ------------------------------------------------------------------------------------------- refusals


def test_mistakes_are_named(write_features, tmp_path):
    rng = np.random.default_rng(13)
    rows = made_rows({"train": 12, "test": 12})
    folder = write_features(rows, made_arrays(rows, rng))
    with pytest.raises(EvaluationError, match=r"k is 20, but there are 12 labelled training rows; pass --k 12"):
        probe(folder, progress=False)
    with pytest.raises(EvaluationError, match=r"holds no a2v features, only video, audio"):
        probe(folder, features=["video", "a2v"], k=3, progress=False)
    with pytest.raises(EvaluationError, match=r"nowhere: holds no finished extraction .*make one with avff extract"):
        probe(tmp_path / "nowhere", progress=False)
    (tmp_path / "begun" / ".parts").mkdir(parents=True)
    with pytest.raises(EvaluationError, match=r"start the same avff extract again"):
        probe(tmp_path / "begun", progress=False)
    trained = [row for row in rows if row.split == "train"]
    only = write_features(trained, made_arrays(trained, rng), "only")
    with pytest.raises(EvaluationError, match=r"no row of split 'test'; splits there: train; .*--test FEATURES_DIR"):
        probe(only, k=3, progress=False)
    real = [replace(row, is_fake=0) if row.split == "test" else row for row in rows]
    with pytest.raises(
        EvaluationError, match=r"split test: a probe is measured on .* but all 12 are real \(0 of unknown"
    ):
        probe(write_features(real, made_arrays(real, rng), "real"), k=3, progress=False)
    blank = [replace(row, is_fake=None) if row.split == "train" else row for row in rows]
    with pytest.raises(EvaluationError, match=r"split train: a probe learns from .* but there is none \(12 of unknown"):
        probe(write_features(blank, made_arrays(blank, rng), "blank"), k=3, progress=False)


def test_features_of_two_networks_are_not_compared(write_features):
    rng = np.random.default_rng(14)
    rows, others = made_rows({"train": 12}), made_rows({"test": 12})
    train = write_features(rows, made_arrays(rows, rng), "train", **{"clip.num_frames": 8})
    test = write_features(
        others, made_arrays(others, rng), "test", checkpoint_sha256="1" * 64, **{"clip.num_frames": 16}
    )
    match = r"checkpoint_sha256 '0{64}' in .*train, '1{64}' in .*test; clip\.num_frames 8 in .*train, 16 in .*test"
    with pytest.raises(EvaluationError, match=match):
        probe(train, test, k=3, progress=False)


def test_a_torn_table_is_named(write_features):
    rows = made_rows({"train": 12, "test": 12})
    folder = write_features(rows, made_arrays(rows, np.random.default_rng(15)))
    lines = (folder / "index.jsonl").read_text().splitlines(keepends=True)
    (folder / "index.jsonl").write_text("".join(lines[:-1]))
    with pytest.raises(EvaluationError, match=r"video has 24 rows, index\.jsonl has 23"):
        read_features(folder)
    (folder / "index.jsonl").write_text("".join(lines)[:-20])
    with pytest.raises(EvaluationError, match=r"index\.jsonl: not the table of an extraction"):
        read_features(folder)
