"""A call into wandb may take so long and no longer; with a service that stalls: tests/engine/test_wandb_run.py."""

from threading import Event

import pytest

from avff.engine.wandb_service import within


def test_a_call_gives_its_result_or_its_error():
    assert within(60.0, lambda: "result") == "result"
    with pytest.raises(KeyError, match="no such run"):
        within(60.0, lambda: {}["no such run"])
    with pytest.raises(SystemExit):
        within(60.0, lambda: exit(9))


def test_a_call_that_takes_too_long_is_left_to_itself(monkeypatch):
    monkeypatch.setattr("avff.engine.wandb_service.STOP_SECONDS", 0.1)
    never = Event()
    with pytest.raises(TimeoutError, match=r"^wandb took longer than 0.2 s$"):
        within(0.2, never.wait)
    never.set()
