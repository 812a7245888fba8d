import socket

import pytest

from avff.doctor import services
from avff.doctor.check import Status

JOB = "JobId=77 JobName=train Requeue={requeue} Restarts=0 BatchFlag={batch} TimeLimit={limit} Partition=main"


@pytest.mark.parametrize(
    ("requeue", "batch", "limit", "config_minutes", "status"),
    [
        (1, 1, "01:00:00", 0, Status.OK),
        (0, 1, "01:00:00", 0, Status.WARN),
        (0, 0, "UNLIMITED", 600, Status.OK),
        (1, 1, "01:00:00", 60, Status.OK),
        (1, 1, "01:00:00", 61, Status.WARN),
    ],
    ids=["requeued", "not requeued", "by hand", "config fits", "config longer"],
)
def test_a_job_comes_back_and_ends_in_time(requeue, batch, limit, config_minutes, status):
    job = services.parse_job(JOB.format(requeue=requeue, batch=batch, limit=limit))
    assert services.judge_slurm_job(job, config_minutes).status is status


@pytest.mark.parametrize(
    ("text", "minutes"), [("30:00", 30), ("01:30:00", 90), ("2-00:00:30", 2880.5), ("UNLIMITED", None)]
)
def test_time_limits_are_read(text, minutes):
    assert services.minutes(text) == minutes


def test_outside_of_a_job():
    assert services.slurm_job(None, {}).value == "not in a SLURM job"


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("mode", "status", "words"),
    [
        ("disabled", Status.OK, "disabled"),
        ("offline", Status.OK, "tools/sync_wandb.py"),
        ("auto", Status.OK, "no login here, so offline"),
        ("online", Status.WARN, "without a login"),
    ],
)
def test_wandb_without_a_login(tiny_config, home, mode, status, words):
    answer = services.wandb(tiny_config(logging={"wandb": mode}), {})
    assert answer.status is status
    assert words in answer.value


def test_wandb_with_a_login_should_be_reached(tiny_config, home):
    config = tiny_config(logging={"wandb": "online"})
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        (home / ".netrc").write_text("machine 127.0.0.1 login user password secret\n")
        (home / ".netrc").chmod(0o600)
        assert services.wandb(config, {"WANDB_BASE_URL": address}).status is Status.OK
    answer = services.wandb(config, {"WANDB_BASE_URL": address, "WANDB_API_KEY": "key"})
    assert answer.status is Status.WARN
    assert "logging.wandb=offline" in answer.fix
