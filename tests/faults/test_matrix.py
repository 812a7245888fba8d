"""Every fault at every moment, with real processes: two ranks under torchrun, gloo, DeepSpeed, shards on disk.

A cell ends in one of two ways. Either the run comes to its end, in one launch or by the same command again, and final
weights, moving average, optimizer, critics, metrics and ledger are those of a run that nothing happened to, to the
bit. Or the run stops and says why: exit.json, code, message; once the cause is mended, it comes to the same end.
"""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from compare_runs import final_files
from harness import SAVE_STEP, Cell, Fault, Lab, differences
from little_runs import NUM_SHARDS, NUM_STEPS, make_samples
from made_samples import build_directory
from safetensors.torch import load_file
from worker import ACTIONS

from avff.files import sha256_of
from avff.run_folder import checkpoint_dir, committed_steps

pytestmark = pytest.mark.slow

EARLIER_SAVE = SAVE_STEP - 2
RANK = {"start_up": 1, "before_save": 0, "writing": 1, "committing": 0, "after_save": 1}
"""Who is harmed, so that either rank is at some moment; only rank 0 commits."""
BAD_KEY, BAD_STEPS = "train37", (10, 11)
"""A clip that comes late, and twice: whenever its bytes go bad, what is read is the same."""


def moments(*fast: str, during: str = "writing") -> pytest.MarkDecorator:
    """Parametrises over the moments; all but `fast` ones are left to `make test-faults`."""
    names = ("start_up", "before_save", during, "after_save")
    marked = [pytest.param(name, marks=() if name in fast else pytest.mark.faults) for name in names]
    return pytest.mark.parametrize("moment", marked)


@pytest.fixture
def cell(lab: Lab, request: pytest.FixtureRequest) -> Cell:
    return lab.cell(re.sub(r"\W+", "_", request.node.name))


def assert_as_undisturbed(cell: Cell, lab: Lab) -> None:
    assert differences(cell, lab.reference()) == []


# ------------------------------------------------------------------------------------------- processes


@moments("committing", during="committing")
def test_a_killed_rank(cell, lab, moment):
    cell.stop(cell.fault("kill", moment, rank=RANK[moment]))
    assert (SAVE_STEP in committed_steps(cell.run_dir)) == (moment == "after_save")
    cell.finish()
    assert_as_undisturbed(cell, lab)


@moments("before_save")
def test_a_killed_loader_worker(cell, lab, moment):
    cell.finish(cell.fault("kill_a_loader_worker", moment, rank=RANK[moment]))
    assert_as_undisturbed(cell, lab)


@moments()
def test_a_frozen_rank(cell, lab, moment):
    rank = RANK[moment]
    with cell.train(cell.fault("freeze", moment, rank=rank), overrides=["faults.hang_seconds=40"]) as training:
        training.wait_for((cell.run_dir / "exit.json").exists)
        assert cell.exit["code"] == 4
        assert re.match(rf"rank {rank} \(host .*(no sign of life|does not answer)", cell.exit["reason"]), cell.exit
        training.wait_for(lambda: 1 - rank not in training.rank_pids())
        assert cell.exit["reason"] in training.log
    cell.finish()
    assert_as_undisturbed(cell, lab)


@moments("before_save")
@pytest.mark.parametrize("signal", [pytest.param("term", marks=pytest.mark.faults), "usr2"])
def test_a_signal_to_one_rank(cell, lab, moment, signal):
    cell.stop(cell.fault(signal, moment, rank=RANK[moment]))
    assert cell.exit["code"] == 75 and "stopped by" in cell.exit["reason"], cell.exit
    assert committed_steps(cell.run_dir)[-1] == cell.exit["step"] < NUM_STEPS
    cell.finish()
    assert_as_undisturbed(cell, lab)


@moments("before_save")
def test_an_exception_in_one_rank(cell, lab, moment):
    log = cell.stop(cell.fault("fail", moment, rank=RANK[moment]))
    assert "RuntimeError: broken on purpose" in log
    assert (cell.exit["code"], cell.exit["rank"]) == (1, RANK[moment]), cell.exit
    assert "RuntimeError" in cell.exit["reason"]
    cell.finish()
    assert_as_undisturbed(cell, lab)


# ------------------------------------------------------------------------------------------- disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system that can be filled without harm: room for four checkpoints of 40 MB and one being written."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256m", "tmpfs", disk]
    mounted = subprocess.run(mount, check=False, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a small tmpfs to fill: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


@moments()
def test_a_full_disk(lab, small_disk, moment):
    cell = lab.cell(f"full_disk_{moment}", runs_dir=small_disk)
    ballast, dropped = small_disk / "ballast", SAVE_STEP + 2 * (moment == "after_save")
    fill = cell.fault("fill_disk", moment, rank=RANK[moment], target=str(ballast))
    if moment == "start_up":
        log = cell.stop(fill)
        assert (cell.exit["code"], cell.exit["step"]) == (3, NUM_STEPS)
        assert "could not be saved" in cell.exit["reason"] and committed_steps(cell.run_dir) == []
        ballast.unlink()
        cell.finish()
    else:
        free = cell.fault("free_disk", "before_save", rank=RANK[moment], save_step=8, target=str(ballast))
        # Without overlap, the save that finds the disk full has not begun when the one before it is there.
        overlap = str(moment != "after_save").lower()
        log = cell.finish(fill, free, overrides=[f"engine.overlap_saving={overlap}"])
        assert dropped not in committed_steps(cell.run_dir)
    assert f"checkpoint step-{dropped} could not be written" in log and "No space left on device" in log
    assert not [name for name in cell.checkpoints if name.endswith(".tmp")]
    assert_as_undisturbed(cell, lab)


@moments("committing", during="committing")
@pytest.mark.parametrize("damage", [pytest.param("truncate", marks=pytest.mark.faults), "flip"])
def test_a_damaged_checkpoint(cell, lab, moment, damage):
    """Each is harmed while the run goes on, which is then killed; `start_up`: between two launches."""
    broken = EARLIER_SAVE if moment == "before_save" else SAVE_STEP
    folder = checkpoint_dir(cell.run_dir, broken)
    target = folder.with_name(folder.name + ".tmp") if moment == "committing" else folder
    harm = cell.fault(damage, moment, rank=RANK[moment], target=str(target / "model" / "rank-00001.safetensors"))
    # Nothing newer is there when it is killed: saves do not overlap the updates that follow.
    launch = {"overrides": ["engine.overlap_saving=false"]}
    kill = cell.fault("kill", "writing" if moment == "before_save" else "after_save", rank=RANK[moment])
    if moment == "start_up":
        cell.stop(kill, **launch)
        ACTIONS[damage](harm)
    else:
        cell.stop(harm, kill, **launch)
    log = cell.finish()
    assert f"checkpoint step-{broken} is damaged" in log and "rank-00001.safetensors" in log
    assert f"step-{broken}.damaged" in cell.checkpoints
    assert_as_undisturbed(cell, lab)


# ------------------------------------------------------------------------------------------- data


@moments()
def test_truncated_tars(cell, lab, moment):
    """Two of four tars lose seven eighths of their bytes."""
    tars = sorted(cell.shards.glob("shard-00000[01].tar"))
    whole = {tar: tar.read_bytes() for tar in tars}
    harm = cell.fault("truncate", moment, rank=RANK[moment], target=str(cell.shards / "shard-00000[01].tar"))
    if moment == "start_up":
        ACTIONS["truncate"](harm)
        cell.stop()
        assert cell.exit["code"] == 2
        assert all(f"{tar.name} has {tar.stat().st_size} bytes instead" in cell.exit["reason"] for tar in tars)
    else:
        cell.stop(harm, overrides=["faults.max_substituted_fraction=0"])
        assert cell.exit["code"] == 3 and "max_substituted_fraction" in cell.exit["reason"]
        assert re.search(r"shard-00000[01]\.tar: \S", cell.exit["reason"]), cell.exit
    for tar, content in whole.items():
        tar.write_bytes(content)
    cell.finish()
    assert_as_undisturbed(cell, lab)


def damage_sample(cell: Cell, moment: str = "start_up") -> Fault:
    return cell.fault("damage_sample", moment, rank=RANK[moment], target=str(cell.shards), key=BAD_KEY)


def damage_at_once(cell: Cell) -> list[Fault]:
    ACTIONS["damage_sample"](damage_sample(cell))
    return []


def assert_bad_key_was_replaced(cell: Cell, reason: str) -> None:
    assert [(line["key"], line["step"]) for line in cell.ledger] == [(BAD_KEY, step) for step in BAD_STEPS]
    assert all(reason in line["reason"] for line in cell.ledger)


@moments()
def test_a_damaged_video(cell, lab, moment):
    """Damaged before the start, and killed after it was met once; or damaged while the run goes on."""
    reference = lab.reference("damaged", damage_at_once)
    if moment == "start_up":
        damage_at_once(cell)
        cell.stop(cell.fault("kill", "before_save", save_step=NUM_STEPS))
        cell.finish()
    else:
        cell.finish(damage_sample(cell, moment))
    assert_bad_key_was_replaced(cell, "crc32")
    assert differences(cell, reference) == []


@pytest.mark.faults
def test_a_video_that_cannot_be_decoded_is_replaced_as_a_damaged_one(cell, lab):
    """Its checksum is right, so that the decoder meets it."""
    samples = make_samples()
    bad = next(sample for sample in samples if sample.metadata.key == BAD_KEY)
    bad.members["face0.mp4"] = b"no video"
    for path in cell.shards.iterdir():
        path.unlink()
    build_directory(cell.shards, samples, num_shards=NUM_SHARDS)
    cell.finish()
    assert_bad_key_was_replaced(cell, "cannot be decoded")
    assert final_files(cell.run_dir) == final_files(lab.reference("damaged", damage_at_once).run_dir)


@moments("writing")
def test_a_decode_that_hangs(cell, lab, moment):
    """The sample blocks in native code: it is given up, on all ranks, and stays so although it could be read later."""
    pipe = cell.folder / "pipe"
    os.mkfifo(pipe)
    hang = cell.fault("hang", moment, rank=RANK[moment], target=str(pipe), key=BAD_KEY)
    overrides = ["faults.decode_timeout_seconds=10"]
    if moment == "start_up":
        Path(hang.mark).touch()
        cell.stop(hang, cell.fault("kill", "before_save", save_step=BAD_STEPS[1]), overrides=overrides)
        cell.finish()
    else:
        cell.finish(hang, overrides=overrides)
    assert_bad_key_was_replaced(cell, "10 s")
    reference = lab.reference("damaged", damage_at_once)
    assert differences(cell, reference, ignored_ledger_fields=["reason"]) == []


# ------------------------------------------------------------------------------------------- numbers

NAN_UPDATES = {"start_up": 0, "before_save": 3, "writing": 8, "after_save": 6}
"""Update 8 is the first after the save of step 8 began, which goes on beside it."""
SAVE_ALL = ["engine.checkpoint_every_steps=1", "engine.keep_checkpoints=20"]


def nan_on_rank_1(cell: Cell) -> list[Fault]:
    return [cell.fault("nan", rank=1, steps=tuple(NAN_UPDATES.values()))]


@moments()
def test_a_nan_on_one_rank(lab, moment):
    """All ranks skip the update, critics included: what is saved after it is what was saved before it."""
    run = lab.reference("nan", nan_on_rank_1, overrides=SAVE_ALL)
    step = NAN_UPDATES[moment] + 1
    assert [line["step"] for line in run.ledger] == sorted(update + 1 for update in NAN_UPDATES.values())
    (line,) = (line for line in run.ledger if line["step"] == step)
    assert line["kind"] == "skipped" and [batch["rank"] for batch in line["batches"]] == [1]
    assert len(line["batches"][0]["keys"]) == 2 and line["batches"][0]["terms"]["loss"] == "nan"
    after = checkpoint_dir(run.run_dir, step)
    for path in sorted(after.rglob("*.safetensors")):
        if step == 1:
            moments_seen = [t for name, t in load_file(path).items() if name.startswith("exp_avg")]
            assert all(not tensor.any() for tensor in moments_seen)
        else:
            before = checkpoint_dir(run.run_dir, step - 1) / path.relative_to(after)
            assert sha256_of(path) == sha256_of(before), path


@pytest.mark.faults
def test_a_run_with_skipped_updates_is_killed(cell, lab):
    """The ledger holds each skipped update once, those that were repeated too."""
    nan = nan_on_rank_1(cell)
    cell.stop(*nan, cell.fault("kill", "before_save", save_step=10))
    cell.finish(*nan)
    assert differences(cell, lab.reference("nan", nan_on_rank_1, overrides=SAVE_ALL)) == []


@pytest.mark.faults
def test_too_many_nan_updates_stop_the_run(cell, lab):
    cell.stop(cell.fault("nan", rank=1, steps=(4, 5)), overrides=["faults.max_nonfinite_steps=2"])
    assert (cell.exit["code"], cell.exit["step"]) == (3, 6)
    assert re.search(r"step 6: 2 updates in a row .*rank 1: loss=nan on keys train\d\d, train\d\d", cell.exit["reason"])
    cell.finish()
    assert_as_undisturbed(cell, lab)
