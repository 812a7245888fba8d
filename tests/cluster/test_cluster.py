"""The cluster itself: what it must be like for tests on it to mean anything."""

import pytest
from daemons import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.cluster]


def test_nodes_are_machines_of_their_own(cluster):
    """Name, address, processes and shared memory; they find each other by name."""
    for node, other in (("n1", "n2"), ("n2", "n1")):
        name, num_processes = cluster.exec(node, ["sh", "-c", "hostname; ls -d /proc/[0-9]* | wc -l"]).split()
        assert name == node
        assert int(num_processes) < 20, "it sees processes of others"
        assert cluster.exec(node, ["getent", "hosts", other]).split()[0] == cluster.address(other)
    assert cluster.exec("n1", ["sh", "-c", "echo here >/dev/shm/file; cat /dev/shm/file"]) == "here"
    assert cluster.exec("n2", ["ls", "/dev/shm"]) == ""


def test_a_job_runs_on_both_nodes_and_is_accounted_for(cluster):
    words = ["srun", "--nodes=2", "--ntasks-per-node=2", "sh", "-c", 'echo "$SLURM_PROCID $(hostname) $SLURM_JOB_ID"']
    lines = sorted(line.split() for line in cluster.run(*words).splitlines())
    assert [line[:2] for line in lines] == [["0", "n1"], ["1", "n1"], ["2", "n2"], ["3", "n2"]]
    job_id = lines[0][2]
    cluster.wait_for([job_id], ["COMPLETED"])
    account = ["sacct", "--noheader", "--parsable2", "--jobs", job_id, "--allocations", "--format=State,ExitCode"]
    wait_until(lambda: cluster.run(*account) == "COMPLETED|0:0", "its account")


def test_a_job_of_a_node_without_power_is_requeued(cluster, tmp_path):
    script = "#!/bin/sh\nhostname\nexec sleep 600\n"
    wanted = ["--nodes=2", "--requeue", "--open-mode=append", f"--output={tmp_path / 'log'}"]
    job_id = cluster.run("sbatch", "--parsable", *wanted, input=script)
    cluster.wait_for([job_id], ["RUNNING"])
    cluster.fail("n2")
    cluster.wait_for([job_id], ["PENDING"])
    cluster.restore("n2")
    cluster.wait_for([job_id], ["RUNNING"])
    assert cluster.job(job_id)["Restarts"] == "1"


def test_a_job_in_high_preempts_one_in_low_after_a_signal(cluster, tmp_path):
    log = tmp_path / "log"
    script = "#!/bin/sh\ntrap 'echo told' USR2\necho started\nwhile :; do sleep 0.2; done\n"
    wanted = ["--nodes=2", "--exclusive", "--requeue", "--signal=B:USR2@120", "--time=60", "--open-mode=append"]
    low = cluster.run("sbatch", "--parsable", "--partition=low", *wanted, f"--output={log}", input=script)
    cluster.wait_for([low], ["RUNNING"])
    wait_until(lambda: log.exists() and log.read_text(), "the job to have set its trap")
    urgent = ["--partition=high", "--nodes=1", "--exclusive", "--output=/dev/null"]
    high = cluster.run("sbatch", "--parsable", *urgent, input="#!/bin/sh\nsleep 1\n")
    cluster.wait_for([high], ["COMPLETED"])
    cluster.wait_for([low], ["RUNNING"])
    assert log.read_text().split()[:2] == ["started", "told"]
    assert cluster.job(low)["Restarts"] == "1"
