"""Who keeps a run waiting: sentences that name ranks, from their notices."""

from collections.abc import Collection, Sequence

from avff.engine.notices import Notice


def about_hang(notices: Sequence[Notice], silent_ranks: Collection[int], waited_seconds: float) -> str:
    """Returns who is to blame that nothing has happened for so long.

    That is, in this order: a rank that an error stopped, ranks that show no sign of life, the ranks that are behind
    all others. When all ranks stand at the same place, none is.
    """
    stopped = [notice for notice in notices if notice.kind == "stopped"]
    if stopped:
        return about_loss(notices, silent_ranks)
    waited = f"for {waited_seconds:.0f} s"
    silent = [notice for notice in notices if notice.rank in silent_ranks]
    if silent:
        return f"{_names(silent)} shown no sign of life {waited}: frozen or dead, last seen at {silent[0].place}"
    last = min(notice.place.order for notice in notices)
    behind = [notice for notice in notices if notice.place.order == last]
    ahead = max(notices, key=lambda notice: notice.place.order)
    if len(notices) == 1:
        return f"no progress {waited}: {ahead.place}"
    if len(behind) == len(notices):
        return (
            f"no rank has made progress {waited}: all {len(notices)} are at {ahead.place}; a collective does not return, "
            "look at the network between the hosts"
        )
    return f"{_names(behind)} made no progress {waited}: {behind[0].place}; {ahead.who} waits at {ahead.place}"


def about_loss(notices: Sequence[Notice], silent_ranks: Collection[int]) -> str:
    """Returns whose end the survivors' broken connections come from; empty where nothing tells."""
    for notice in notices:
        if notice.kind in ("stopped", "hang"):
            return f"{notice.who} stopped at {notice.place}: {notice.words}"
    gone = [notice for notice in notices if notice.rank in silent_ranks]
    if gone:
        return f"{_names(gone)} gone: killed, or the machine failed; last seen at {gone[0].place}"
    return ""


def about_silent_board(rank_0: Notice) -> str:
    """Returns the sentence for the time when notices can no longer be read: rank 0 holds them."""
    stopped = about_loss([rank_0], ())
    return (
        stopped or f"{rank_0.who} does not answer: frozen, killed, or its machine failed; last seen at {rank_0.place}"
    )


def _names(notices: Sequence[Notice]) -> str:
    """Names up to three ranks, with the verb that follows."""
    names = ", ".join(notice.who for notice in notices[:3])
    more = f" and {len(notices) - 3} more" if len(notices) > 3 else ""
    return f"{names}{more} {'has' if len(notices) == 1 else 'have'}"
