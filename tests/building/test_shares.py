"""Parts built by several processes, each with a share, and one merge: the bytes of a build by a single process."""

import fcntl
import multiprocessing
from pathlib import Path

import pytest
from little_media import content

from avff.build_config import BuildConfig
from avff.building import locks
from avff.building.build import build_parts, build_shards
from avff.building.parts import Task, build_part, finished_parts
from avff.building.plan import BuildPlan, Share, parse_share, plan_build
from avff.building.sources import read_sources
from avff.errors import ConfigError, ShardError

CONFIG = BuildConfig(mode="frame", min_seconds=3.2)


def plan(folder: Path, output: Path, **options) -> BuildPlan:
    return plan_build(read_sources(folder), output, CONFIG, **{"shard_bytes": 150_000, **options})


@pytest.fixture(scope="module")
def built(media_folder, tmp_path_factory) -> Path:
    """What one process makes of the folder."""
    output = tmp_path_factory.mktemp("built") / "shards"
    build_shards(plan(media_folder, output))
    return output


@pytest.fixture
def no_waiting(monkeypatch):
    monkeypatch.setattr(locks, "WAIT_SECONDS", 0.0)


def test_shares_in_any_order_give_the_bytes_of_one_process(media_folder, built, tmp_path):
    output = tmp_path / "shards"
    reports = [build_parts(plan(media_folder, output), share=Share(index, 4)) for index in (2, 0, 3, 1)]
    assert sum(report.num_sources for report in reports) == sum(report.num_built for report in reports) == 9
    assert [reject.source_path for report in reports for reject in report.rejects] == ["broken.mp4"]
    summary = build_shards(plan(media_folder, output), num_shares=4)
    assert content(output) == content(built)
    assert summary.num_rejects == {"UNDECODABLE": 1}


def test_a_share_finds_what_was_built_also_under_another_number_of_shares(media_folder, built, tmp_path):
    output = tmp_path / "shards"
    for index in range(3):
        build_parts(plan(media_folder, output), share=Share(index, 3))
    times = {path.name: path.stat().st_mtime_ns for path in (output / ".parts").glob("part-*")}
    again = build_parts(plan(media_folder, output), share=Share(1, 2))
    assert (again.num_sources, again.num_built) == (4, 0)
    assert "share 1/2: 4 sources, 0 built now, 4 were there" in again.as_text()
    assert {path.name: path.stat().st_mtime_ns for path in (output / ".parts").glob("part-*")} == times
    build_shards(plan(media_folder, output), num_shares=3)
    assert build_parts(plan(media_folder, output), share=Share(0, 3)).num_built == 0
    assert content(output) == content(built)


def test_the_merge_names_what_each_share_lacks_and_builds_nothing(media_folder, tmp_path):
    output = tmp_path / "shards"
    asked = plan(media_folder, output)
    build_parts(asked, share=Share(0, 3))
    unread = asked.tasks[1]
    (asked.parts / "part-00000001.begun").touch()
    with pytest.raises(ShardError) as raised:
        build_shards(asked, num_shares=3)
    message = str(raised.value)
    assert "6 of 9 sources are not built" in message
    assert "share 0/3" not in message and "share 2/3 lacks 3, such as" in message
    assert f"it ended while it read {unread.source.name}" in message
    assert finished_parts(asked.parts) == {0, 3, 6}
    assert not list(output.glob("*.tar"))


def test_a_share_leaves_shards_alone_that_a_stopped_merge_has_laid(media_folder, built, tmp_path):
    output = tmp_path / "shards"
    build_shards(plan(media_folder, output))
    (output / "manifest.json").unlink()
    lost = sorted(output.glob("shard-*.tar"))[0]
    lost.unlink()
    reports = [build_parts(plan(media_folder, output), share=Share(index, 2)) for index in range(2)]
    assert 0 < sum(report.num_built for report in reports) < 9
    build_shards(plan(media_folder, output), num_shares=2)
    assert content(output) == content(built)


def test_a_directory_of_parts_refuses_another_request(media_folder, tmp_path):
    output = tmp_path / "shards"
    build_parts(plan(media_folder, output), share=Share(0, 3))
    with pytest.raises(ConfigError, match="shard_bytes was 150000, now 9000"):
        build_parts(plan(media_folder, output, shard_bytes=9000), share=Share(1, 3))


def test_shares_work_beside_each_other_and_the_merge_alone(media_folder, tmp_path, no_waiting):
    asked = plan(media_folder, tmp_path / "shards")
    with locks.hold(asked.parts, shared=True):
        build_parts(asked, share=Share(0, 9))
        with pytest.raises(ConfigError, match=r"shards: process \d+ on \S+ builds here; wait for it or stop it"):
            build_shards(asked)
    with locks.hold(asked.parts, shared=False), pytest.raises(ConfigError, match="builds here"):
        build_parts(asked, share=Share(1, 9))


def test_a_lock_that_its_holder_has_removed_holds_nobody(tmp_path):
    parts = tmp_path / ".parts"
    parts.mkdir()
    with (parts / "lock").open("w") as removed:
        fcntl.flock(removed, fcntl.LOCK_EX)
        (parts / "lock").unlink()
        with locks.hold(parts, shared=False):
            assert (parts / "lock").is_file()


@pytest.mark.slow
def test_one_part_asked_of_two_processes_is_built_once(media_folder, tmp_path):
    asked = plan(media_folder, tmp_path / "shards")
    asked.parts.mkdir(parents=True)
    context = multiprocessing.get_context("spawn")
    begun = asked.parts / "part-00000000.begun"
    with locks.one_at_a_time(begun):
        other = context.Process(target=_build_first, args=(asked.tasks,))
        other.start()
        part = build_part(asked.tasks[1])
        other.join(timeout=3)
        assert other.is_alive() and finished_parts(asked.parts) == {1}
    other.join()
    assert other.exitcode == 0 and part.num_bytes and finished_parts(asked.parts) == {0, 1}


def _build_first(tasks: list[Task]) -> None:
    build_part(tasks[0])


@pytest.mark.parametrize("text", ["3", "8/8", "-1/8", "0/0", "a/b"])
def test_an_impossible_share_says_which_there_are(text):
    with pytest.raises(ConfigError, match="the shares of 8 are 0/8 to 7/8"):
        parse_share(text)
    assert parse_share("7/8") == Share(7, 8)
