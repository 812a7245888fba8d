"""The variables that say which rank a process is."""

import pytest

from avff.launched import adopt_slurm_environment, first_host, note_exit_code

STEP = {
    "SLURM_JOB_ID": "55296757",
    "SLURM_PROCID": "9",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "2",
    "SLURM_STEP_NUM_TASKS": "11",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2),3",
    "SLURM_STEP_NODELIST": "gpu[07-08,12]",
}


def adopted(**changes: str) -> dict[str, str]:
    environment = {**STEP, **changes}
    adopt_slurm_environment(environment)
    return {name: value for name, value in environment.items() if not name.startswith("SLURM_")}


def test_a_step_of_srun_says_which_rank_this_is():
    ranks = adopted()
    assert 15_000 <= int(ranks.pop("MASTER_PORT")) < 32_000
    assert ranks == {
        "RANK": "9",
        "WORLD_SIZE": "11",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "3",
        "MASTER_ADDR": "gpu07",
    }
    assert adopted(SLURM_NODEID="1")["LOCAL_WORLD_SIZE"] == "4"


def test_a_restart_and_another_job_meet_at_another_port():
    ports = {
        adopted()["MASTER_PORT"],
        adopted(SLURM_RESTART_COUNT="1")["MASTER_PORT"],
        adopted(SLURM_JOB_ID="55296758")["MASTER_PORT"],
    }
    assert len(ports) == 3


def test_torchrun_goes_first_and_a_batch_script_is_one_process():
    assert adopted(RANK="0") == {"RANK": "0"}
    assert adopted(SLURM_STEP_NUM_TASKS="1") == {}
    batch_script = {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"}
    adopt_slurm_environment(batch_script)
    assert "RANK" not in batch_script


@pytest.mark.parametrize(
    ("nodes", "host"),
    [("n1", "n1"), ("n[1-2]", "n1"), ("a,b", "a"), ("r[0-1]n[03-09,11],x", "r0n03"), ("n[08,10]-ib", "n08-ib")],
)
def test_the_first_host_of_a_list(nodes, host):
    assert first_host(nodes) == host


def test_codes_are_noted_where_asked(monkeypatch, tmp_path):
    note_exit_code(75)  # not asked: nothing happens
    monkeypatch.setenv("AVFF_EXIT_CODE_FILE", str(tmp_path / "codes"))
    note_exit_code(75)
    note_exit_code(1)
    assert (tmp_path / "codes").read_text() == "75\n1\n"
