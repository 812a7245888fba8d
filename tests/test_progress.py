"""Progress of long work in a log file: lines, not a bar."""

import logging
import sys

from avff.progress import progress_bar


def test_a_log_file_gets_a_line_at_the_start_every_so_often_and_at_the_end(caplog):
    with caplog.at_level(logging.INFO, "avff.progress"):
        assert list(progress_bar("abcdef", total=8, initial=2, unit="file", description="build", line_seconds=0)) == [
            *"abcdef"
        ]
    counts = [message.split(" (")[0] for message in caplog.messages]
    assert counts == [f"build: {done} of 8 files" for done in (2, 3, 4, 5, 6, 7, 8, 8)]
    assert not any("\r" in message or "\n" in message for message in caplog.messages)


def test_lines_keep_their_distance(caplog):
    with caplog.at_level(logging.INFO, "avff.progress"):
        list(progress_bar(range(1000), total=1000, unit="file", description="build", line_seconds=1e9))
    assert [message.split(" (")[0] for message in caplog.messages] == [
        "build: 0 of 1000 files",
        "build: 1000 of 1000 files",
    ]


def test_nothing_is_said_of_nothing_or_when_told_so(caplog, capsys):
    with caplog.at_level(logging.INFO, "avff.progress"):
        list(progress_bar([], total=0, unit="file", description="build"))
        list(progress_bar([1], total=1, unit="file", description="build", shown=False))
    assert caplog.messages == [] and capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar(capsys, caplog, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with caplog.at_level(logging.INFO, "avff.progress"):
        list(progress_bar([1, 2], total=2, unit="file", description="build"))
    assert "\rbuild: 100%" in capsys.readouterr().err
    assert caplog.messages == []
