"""Says in sentences how the shards and settings of a run differ from those it was started with."""

from collections.abc import Iterator
from typing import Any

_FIELD_OF_SETTING = {
    "plan_version": "the plan's version (set by the version of avff)",
    "global_batch_size": "engine.global_batch_size",
    "num_runs": "data.num_runs (0 means the samples of a step)",
    "windows_per_sample": "data.windows_per_sample",
    "shuffle_window_shards": "data.shuffle_window_shards",
    "train_split": "data.train_split",
    "labels": "data.labels",
    "min_seconds": "the clip's length in seconds (clip.num_frames, clip.frames_per_second)",
    "balance_column": "data.balance_column",
    "column_weights": "data.column_weights",
}
_HASH_CHARACTERS = 12
_Directory = dict[str, Any]
_Shard = dict[str, Any]


def describe_change(old_signature: dict[str, Any], new_signature: dict[str, Any]) -> list[str]:
    """Compares two signatures of `avff.data.signature`, as saved with a run and as found now.

    Directories are matched by path, then by the shards that they share, so that a moved folder is no change.

    Returns:
        one line per changed setting and per shard that was removed, renamed, added or changed; none where both have
        the same hash.
    """
    old, new = old_signature["directories"], new_signature["directories"]
    matches = _match(old, new)
    lines = list(_changed_settings(old_signature, new_signature))
    for before, after in matches:
        lines += _changed_directory(before, after)
    kept = [before for before, after in matches if before and after]
    if kept != [directory for directory in old if directory in kept]:
        lines.append(f"the directories come in another order: {_paths(old)} then, {_paths(new)} now")
    return lines


def _changed_settings(old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    for name in dict.fromkeys([*old, *new]):
        if name != "directories" and old.get(name) != new.get(name):
            yield f"{_FIELD_OF_SETTING.get(name, name)}: {old.get(name)!r} then, {new.get(name)!r} now"


def _match(old: list[_Directory], new: list[_Directory]) -> list[tuple[_Directory | None, _Directory | None]]:
    """Pairs each new directory with what it was, in the new order; then come those that are gone."""
    rest = list(old)
    before: list[_Directory | None] = [None] * len(new)
    for alike in (_same_path_and_content, _same_content, _same_path, _share_a_shard):
        for i, directory in enumerate(new):
            if before[i] is None:
                before[i] = next((candidate for candidate in rest if alike(candidate, directory)), None)
                if before[i] is not None:
                    rest = [candidate for candidate in rest if candidate is not before[i]]
    return [*zip(before, new, strict=True), *((directory, None) for directory in rest)]


def _same_path_and_content(old: _Directory, new: _Directory) -> bool:
    return _same_path(old, new) and _same_content(old, new)


def _same_content(old: _Directory, new: _Directory) -> bool:
    return old["fingerprint"] == new["fingerprint"]


def _same_path(old: _Directory, new: _Directory) -> bool:
    return old["path"] == new["path"]


def _share_a_shard(old: _Directory, new: _Directory) -> bool:
    return not {shard["sha256"] for shard in old["shards"]}.isdisjoint(shard["sha256"] for shard in new["shards"])


def _changed_directory(old: _Directory | None, new: _Directory | None) -> Iterator[str]:
    if old is None or new is None:
        directory = new or old or {}
        num_samples = sum(shard["num_samples"] for shard in directory["shards"])
        yield (
            f"{directory['path']}: the whole directory was {'removed' if new is None else 'added'}, "
            f"{len(directory['shards'])} shards with {num_samples} samples"
        )
        return
    if old.get("weight") != new.get("weight"):
        yield f"{new['path']}: weight {old['weight']} then, {new['weight']} now"
    if old["fingerprint"] == new["fingerprint"]:
        return
    lines = list(_changed_shards(old["shards"], new["shards"]))
    if not lines:
        lines = ["manifest.json lists the same shards in another order"]
    yield from (f"{new['path']}: {line}" for line in lines)


def _changed_shards(old: list[_Shard], new: list[_Shard]) -> Iterator[str]:
    before, after = ({shard["name"]: shard for shard in shards} for shards in (old, new))
    added = {name: shard for name, shard in after.items() if name not in before}
    new_names = {shard["sha256"]: name for name, shard in added.items()}
    for name, shard in before.items():
        if name in after:
            yield from _changed_content(shard, after[name])
        elif new_name := new_names.pop(shard["sha256"], ""):
            del added[new_name]
            yield f"{name} was renamed to {new_name} ({_about(shard)})"
        else:
            yield f"{name} was removed ({_about(shard)})"
    for name, shard in added.items():
        yield f"{name} was added ({_about(shard)})"


def _changed_content(old: _Shard, new: _Shard) -> Iterator[str]:
    if old["sha256"] != new["sha256"]:
        yield f"{new['name']} was changed: {_about(old)} then, {_about(new)} now"
    elif old["index_sha256"] != new["index_sha256"]:
        yield (
            f"the index of {new['name']} was changed: sha256 {_short(old['index_sha256'])} then, "
            f"{_short(new['index_sha256'])} now"
        )


def _about(shard: _Shard) -> str:
    return f"{shard['num_samples']} samples, sha256 {_short(shard['sha256'])}"


def _short(sha256: str) -> str:
    return sha256[:_HASH_CHARACTERS]


def _paths(directories: list[_Directory]) -> str:
    return ", ".join(directory["path"] for directory in directories)
