"""Ends a run that hangs, naming the rank that keeps the others waiting; tells survivors which rank broke the run.

Two threads stand beside the training: one counts how long its rank has made no progress, one exchanges notices with the
other ranks and may itself be stuck while rank 0 is frozen. Neither touches the device or the process group.
"""

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

import torch.distributed as dist

from avff import distributed, launched
from avff.engine import verdict
from avff.engine.messenger import LONGEST_WAIT_BEATS, SILENT_BEATS, Messenger
from avff.engine.notices import PHASES, Notice, NoticeBoard, Place
from avff.engine.patient_clock import PatientClock
from avff.errors import LOST_RANK_EXIT_CODE, LostRankError, describe

RECORD_SECONDS = 10.0
"""Longest that writing down a hang may take."""
MEETING_SECONDS = 5.0
"""How long a rank with an error of its own waits for others to say the same; after an agreed one they all do at once."""
LOSS_BEATS = SILENT_BEATS + 3 * LONGEST_WAIT_BEATS
"""How long a rank that lost a connection waits for others to say why, or to fall silent. Before the silence of a dead
rank is counted come an exchange that was going on, the first one that reads all notices, and one with its last sign."""
HEARING_SECONDS = 10.0
"""How long a rank that found a hang waits for the others to hear of it, and to show what they are doing."""

LONGEST_BEAT_SECONDS = 1.0
WATCH_FRACTION = 0.3
"""Part of `hang_seconds` without progress after which a rank starts to listen to the others."""

_CONNECTION_ERRORS = ("gloo/transport", "NCCL", "Connection closed by peer", "Connection reset by peer", "Broken pipe")


class LastWords(NamedTuple):
    """What stopped this rank, as it is to be told; see `avff.engine.process.fail`.

    Attributes:
        error: the error itself, or, for a broken connection, one that names the rank at fault.
        speaks: whether this rank is the one to print it.
        alone: whether no other rank was stopped by the same.
    """

    error: BaseException
    speaks: bool
    alone: bool


class Watchdog:
    """Watches this rank within a `with` block, which all ranks enter together.

    Args:
        hang_seconds: longest time between two marks of one rank.
        on_hang: gets sentence and step when the run is ended for hanging, just before the process exits with code 4;
            it is called from a thread.
    """

    def __init__(self, hang_seconds: float, on_hang: Callable[[str, int], None]):
        self.hang_seconds = hang_seconds
        self.on_hang = on_hang
        self._beat_seconds = min(LONGEST_BEAT_SECONDS, hang_seconds / 20)
        self._clock = PatientClock(LONGEST_WAIT_BEATS * self._beat_seconds)
        self._place = Place()
        self._num_marks = 0
        self._messenger: Messenger | None = None
        self._ended = threading.Event()
        self._is_ending = threading.Event()

    @property
    def step(self) -> int:
        """Updates done, as last marked."""
        return self._place.step

    def mark(self, phase: str, step: int) -> None:
        """Notes progress; every rank calls this at the same points, as often as it likes.

        Args:
            phase: what begins now, one of `avff.engine.notices.PHASES`.
            step: updates done.
        """
        if phase not in PHASES:
            raise ValueError(f"phase {phase!r} is not one of {PHASES}")
        same = (step, phase) == self._place[:2]
        self._place = Place(step, phase, self._place.tick + 1 if same else 0)
        self._num_marks += 1

    def __enter__(self) -> "Watchdog":
        if distributed.world_size() > 1:
            self._messenger = Messenger(NoticeBoard(), lambda: self._place, self._beat_seconds, self._clock)
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._messenger:
            self._messenger.end()

    # --------------------------------------------------------------------------------------- hangs

    def _watch(self) -> None:
        num_marks, marked_at = self._num_marks, self._clock.seconds()
        while not self._ended.wait(self._beat_seconds):
            now = self._clock.seconds()
            if num_marks != self._num_marks:
                num_marks, marked_at = self._num_marks, now
            idle_seconds = now - marked_at
            self._listen(idle_seconds)
            if idle_seconds >= self.hang_seconds:
                self._end_run(self._judge(), speaks=True)

    def _listen(self, idle_seconds: float) -> None:
        """While this rank waits, hears what the others say; ends with them when one has found that the run hangs."""
        if self._messenger:
            self._messenger.is_curious = idle_seconds > WATCH_FRACTION * self.hang_seconds
            found = [notice for notice in self._messenger.others() if notice.kind == "hang"]
            if found and self._messenger.is_curious:
                self._end_run(found[0].words, speaks=False)

    def _judge(self) -> str:
        messenger = self._messenger
        if messenger is None:
            own = Notice(distributed.rank(), os.uname().nodename, 0, self._place)
            return verdict.about_hang([own], (), self.hang_seconds)
        if messenger.has_lost_rank_0:
            return verdict.about_silent_board(messenger.notices[0])
        return verdict.about_hang(messenger.notices, messenger.silent_ranks(), self.hang_seconds)

    def _end_run(self, sentence: str, *, speaks: bool) -> None:
        """Does not return. What every thread of this rank is doing goes to stderr, too."""
        self._is_ending.set()
        if self._messenger:
            self._messenger.say("hang", sentence)
        if speaks:
            sys.stderr.write(f"avff train: {sentence}\n")
        sys.stderr.write(f"rank {distributed.rank()} is at {self._place}:\n")
        sys.stderr.flush()
        faulthandler.dump_traceback()
        # In a thread of its own: where a file system is what hangs, it would keep this one, too.
        record = threading.Thread(target=self.on_hang, args=(sentence, self.step), daemon=True)
        record.start()
        record.join(RECORD_SECONDS)
        if self._messenger:
            # Until all ranks that wait have found the same, or heard it: rank 0 takes the notices along.
            self._messenger.wait_for_all(HEARING_SECONDS)
        launched.note_exit_code(LOST_RANK_EXIT_CODE)
        os._exit(LOST_RANK_EXIT_CODE)

    # --------------------------------------------------------------------------------------- errors

    def last_words(self, error: BaseException) -> LastWords:
        """Says to the other ranks what stopped this one, and hears what stopped them.

        A broken connection to another rank becomes an error that names that rank, if anything tells which it was. What
        stopped several ranks is left to the lowest of them to print. Waits a few seconds for the others at most.
        """
        self._num_marks += 1
        if self._is_ending.is_set():
            # The other thread has found a hang, says more than this and ends the process.
            time.sleep(3 * RECORD_SECONDS)
        if self._messenger is None:
            return LastWords(error, speaks=True, alone=True)
        if _is_lost_connection(error):
            return self._after_loss(self._messenger, error)
        return self._after_error(self._messenger, error)

    def _after_error(self, messenger: Messenger, error: BaseException) -> LastWords:
        messenger.say("stopped", describe(error))
        messenger.wait_for_all(MEETING_SECONDS)
        same = [n.rank for n in messenger.others() if n.words == describe(error)]
        messenger.leave()
        rank = distributed.rank()
        return LastWords(error, speaks=rank == min([rank, *same]), alone=not same)

    def _after_loss(self, messenger: Messenger, error: BaseException) -> LastWords:
        messenger.say("lost", describe(error))

        def sentence() -> str:
            return verdict.about_loss(messenger.others(), messenger.silent_ranks())

        messenger.wait_until(lambda: bool(sentence()), LOSS_BEATS * self._beat_seconds)
        told = any(other.kind in ("stopped", "hang") for other in messenger.others())
        if messenger.has_lost_rank_0:
            # Without rank 0, no rank can see which others are left: the next one speaks.
            error = LostRankError(verdict.about_silent_board(messenger.notices[0]))
            return LastWords(error, speaks=not told and distributed.rank() == 1, alone=False)
        named, lost = sentence(), [other.rank for other in messenger.others() if other.kind == "lost"]
        messenger.leave()
        return LastWords(
            LostRankError(named) if named else error,
            speaks=not told and distributed.rank() == min([distributed.rank(), *lost]),
            alone=not named,
        )


def _is_lost_connection(error: BaseException) -> bool:
    """Whether an error says no more than that some other rank is gone."""
    text = str(error)
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(part in text for part in _CONNECTION_ERRORS)
    )
