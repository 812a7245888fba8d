"""A thread that posts this rank's notice and reads those of others, for the watchdog."""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Literal

import torch.distributed as dist

from avff import distributed
from avff.engine.notices import Notice, NoticeBoard, Place
from avff.engine.patient_clock import PatientClock

SILENT_BEATS = 5
"""A rank whose notice has not changed for so many beats shows no sign of life."""
LONGEST_WAIT_BEATS = 2
"""At most so many are counted for one exchange, however long it took."""


class Messenger:
    """Posts this rank's notice every beat, and reads the notices of others.

    Only its thread touches the board, where each call may wait for a frozen rank 0; the methods here never do.

    Args:
        place: returns where this rank stands.
        clock: looked at by others too while this thread waits for an answer.

    Attributes:
        hosts: of each rank.
        is_curious: whether all notices are read. While all goes well, rank 0's is enough: as the board goes with it,
            its last words could not be read later.
        notices: as last read.
    """

    def __init__(self, board: NoticeBoard, place: Callable[[], Place], beat_seconds: float, clock: PatientClock):
        self.hosts = board.hosts
        self.is_curious = False
        self.rank = distributed.rank()
        self.notices = [Notice(rank, host, beat=0) for rank, host in enumerate(board.hosts)]
        self._board = board
        self._place = place
        self._beat_seconds = beat_seconds
        self._clock = clock
        self._silent_seconds = SILENT_BEATS * beat_seconds
        self._kind: Literal["", "stopped", "lost", "hang"] = ""
        self._words = ""
        self._has_left = False
        self._quiet_seconds = [0.0] * len(board.hosts)
        self._listened_seconds = 0.0
        self._num_exchanges = 0
        self._read_at_beat: dict[int, int] = {}
        self._answered_at = clock.seconds()
        self._is_gone = False
        self._ended = False
        self._wake = threading.Event()
        threading.Thread(target=self._run, name="messenger", daemon=True).start()

    @property
    def is_answered(self) -> bool:
        """False when rank 0, which holds the notices, is gone or does not answer."""
        return not self._is_gone and self._clock.seconds() - self._answered_at < self._silent_seconds

    @property
    def has_lost_rank_0(self) -> bool:
        """Whether that is the sign of a rank 0 in trouble: never on rank 0, whose own thread may be late."""
        return self.rank != 0 and not self.is_answered

    def others(self) -> list[Notice]:
        return [notice for notice in self.notices if notice.rank != self.rank]

    def silent_ranks(self) -> list[int]:
        """Ranks without a sign of life for some beats, other than those that said that they leave."""
        return [n.rank for n in self.others() if self._quiet_seconds[n.rank] >= self._silent_seconds and not n.has_left]

    def say(self, kind: Literal["stopped", "lost", "hang"], words: str) -> None:
        """Adds to this rank's notice what stops it, and starts to listen."""
        self._words, self._kind = words, kind
        self._wake.set()

    def wait_until(self, condition: Callable[[], bool], seconds: float) -> None:
        """Waits for a condition on what the others say, until they were listened to for so long or rank 0 is gone.

        Time counts as the silence of others does: on a busy machine, both take longer.
        """
        end = self._listened_seconds + seconds
        while self.is_answered and self._listened_seconds < end and not condition():
            time.sleep(self._beat_seconds / 10)

    def wait_for_all(self, seconds: float) -> None:
        """Waits until every other rank that lives says what stops it, with the limits of `wait_until`."""
        self.wait_until(lambda: {n.rank for n in self.others() if not n.kind} <= {*self.silent_ranks()}, seconds)

    def leave(self) -> None:
        """Tells that this rank knows enough; rank 0 waits until all others read what it said, or do that spoke, too."""
        self._has_left = True
        self._wake.set()
        posted = self._num_exchanges + 2  # one may be going on that began before
        self.wait_until(lambda: self._num_exchanges >= posted, self._silent_seconds)
        if self.rank == 0:
            self.wait_until(self._may_take_the_board_along, 2 * self._silent_seconds)

    def _may_take_the_board_along(self) -> bool:
        listening = [n for n in self.others() if n.rank not in self.silent_ranks() and n.kind != "hang"]
        return all(n.has_left if n.kind else n.beat >= self._read_at_beat.get(n.rank, n.beat + 1) for n in listening)

    def end(self) -> None:
        self._ended = True
        self._wake.set()

    def _run(self) -> None:
        beat = 0
        while not self._ended:
            beat += 1
            try:
                with suppress(dist.DistStoreError):  # rank 0 was frozen for long, and now goes on
                    self._exchange(beat)
            except dist.DistError:
                self._is_gone = True
                return
            # With something to say, an answer is waited for: look more often.
            self._wake.wait(self._beat_seconds / 10 if self._kind else self._beat_seconds)
            self._wake.clear()

    def _exchange(self, beat: int) -> None:
        own = Notice(self.rank, self.hosts[self.rank], beat, self._place(), self._kind, self._words, self._has_left)
        self._board.post(own)
        everyone = self.is_curious or self._kind
        self._take(self._board.read(range(len(self.hosts)) if everyone else [0]))
        self._num_exchanges += 1
        if own.kind and not self._read_at_beat:
            # A rank posts and then reads: two beats from now, it has read what is there now.
            self._read_at_beat = {other.rank: other.beat + 2 for other in self.others()}

    def _take(self, read: list[Notice]) -> None:
        # A long wait for rank 0 is not held against the others.
        now = self._clock.seconds()
        waited = min(now - self._answered_at, LONGEST_WAIT_BEATS * self._beat_seconds)
        self._answered_at = now
        self._listened_seconds += waited
        notices = list(self.notices)
        for new in read:
            alive = new.beat != notices[new.rank].beat
            self._quiet_seconds[new.rank] = 0.0 if alive else self._quiet_seconds[new.rank] + waited
            notices[new.rank] = new
        self.notices = notices
