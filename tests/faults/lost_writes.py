"""File operations recorded by strace, and what a disk may hold when the machine dies after any of them.

A disk keeps what was fsynced. Of everything else it may hold any part: contents without names, names without contents,
some of each, in another order. `Disk` holds both, per file and per folder, and gives the trees that can be found.
"""

import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeAlias

CHANGING = (
    "open openat creat write pwrite64 writev pwritev pwritev2 truncate ftruncate fallocate copy_file_range sendfile "
    "splice rename renameat renameat2 link linkat symlink symlinkat unlink unlinkat rmdir mkdir mkdirat fsync fdatasync"
).split()
"""System calls that change files, or make changes last. Those that `_operation` does not know are refused."""
STRACE = ["strace", "-f", "-y", "-xx", "-s", "1000000", "--seccomp-bpf", "-e", "signal=none", "-e"]
STRACE.append(f"trace={','.join(CHANGING)}")

Tree: TypeAlias = dict[str, bytes | None]
"""Path below the root -> content; None for a folder."""


class Operation(NamedTuple):
    """One change, or half of an fsync.

    Attributes:
        kind: create, write, resize, rename, remove, mkdir, sync_begins, sync_ends; `mark` for what the test sets.
        path: relative to the root.
        argument: content, size, new path, number of the fsync.
    """

    kind: str
    path: str
    argument: bytes | int | str = 0


# ------------------------------------------------------------------------------------------- reading a trace


def read_trace(trace: Path, root: Path, marks: Path) -> Iterator[Operation]:
    """Yields what happened below `root`, and each `mkdir` below `marks`, in order.

    A call that was interrupted by another process's stands where it began, an fsync where it ended.
    """
    for number, text, is_end in _calls(trace.read_text().splitlines()):
        match = re.fullmatch(r"(\w+)\((.*)\)\s+= (-?\d+|\?).*", text)
        if not match or '"...' in text:
            raise ValueError(f"{trace}: cannot read the call {text[:200]!r}")
        call, arguments, result = match.groups()
        if result.startswith(("-", "?")):  # it failed, or its process was killed inside
            continue
        if call in ("fsync", "fdatasync"):
            path = _below(root, _descriptor(arguments))
            if path is not None:
                yield Operation("sync_ends" if is_end else "sync_begins", path, number)
        elif not is_end:
            yield from _operation(call, arguments, root, marks)


def _calls(lines: list[str]) -> list[tuple[int, str, bool]]:
    """Returns (number, whole call, whether it ends here) twice for each call: where it began and where it ended."""
    texts: list[str] = []
    events: list[tuple[int, bool]] = []
    begun: dict[str, int] = {}
    for line in lines:
        process, _, text = line.partition(" ")
        text = text.strip()
        if text.startswith("+++"):  # the process ended
            continue
        if match := re.match(r"<\.\.\. \w+ resumed>", text):
            number = begun.pop(process)
            texts[number] += text[match.end() :]
            events.append((number, True))
            continue
        number = len(texts)
        texts.append(text.removesuffix("<unfinished ...>").rstrip())
        events.append((number, False))
        if text.endswith("<unfinished ...>"):
            begun[process] = number
        else:
            events.append((number, True))
    for number in begun.values():
        texts[number] += ") = ?"
    return [(number, texts[number], is_end) for number, is_end in events]


def _operation(call: str, arguments: str, root: Path, marks: Path) -> Iterator[Operation]:
    paths = [path for path in (_below(root, name) for name in _paths(call, arguments)) if path is not None]
    if call.startswith("mkdir") and _below(marks, _paths(call, arguments)[0]):
        yield Operation("mark", "")
    if not paths:
        return
    if call in ("open", "openat"):
        if "O_CREAT" in arguments:
            yield Operation("create", paths[0], int("O_TRUNC" in arguments or "O_EXCL" in arguments))
        elif "O_TRUNC" in arguments or "O_APPEND" in arguments:
            raise ValueError(f"{call}({arguments[:200]}): opened for writing in a way that is not modelled")
    elif call == "write":
        yield Operation("write", paths[0], _decode(re.findall(r'"([^"]*)"', arguments)[0]))
    elif call == "ftruncate":
        yield Operation("resize", paths[0], int(arguments.rpartition(",")[2]))
    elif call in ("rename", "renameat", "renameat2"):
        yield Operation("rename", paths[0], paths[1])
    elif call in ("unlink", "unlinkat", "rmdir"):
        yield Operation("remove", paths[0])
    elif call in ("mkdir", "mkdirat"):
        yield Operation("mkdir", paths[0])
    else:
        raise ValueError(f"{call}({arguments[:200]}): not modelled")


def _paths(call: str, arguments: str) -> list[str]:
    """Returns the whole paths that a call names, through its strings or its descriptor."""
    if call in ("open", "creat", "truncate", "rename", "link", "symlink", "unlink", "rmdir", "mkdir"):
        return [_decode(text).decode(errors="replace") for text in re.findall(r'"([^"]*)"', arguments)]
    if call in ("openat", "renameat", "renameat2", "linkat", "symlinkat", "unlinkat", "mkdirat"):
        pairs = re.findall(r'(?:AT_FDCWD|\d+)<([^>]*)>, "([^"]*)"', arguments)
        return [str(Path(_decode(folder).decode()) / _decode(name).decode(errors="replace")) for folder, name in pairs]
    return [_descriptor(arguments)]


def _descriptor(arguments: str) -> str:
    """Returns the path of the descriptor that a call begins with."""
    match = re.match(r"\d+<([^>]*)>", arguments)
    return _decode(match[1]).decode(errors="replace") if match else ""


def _decode(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", "")) if "\\x" in text else text.encode()


def _below(root: Path, path: str) -> str | None:
    return str(Path(path).relative_to(root)) if Path(path).is_relative_to(root) else None


# ------------------------------------------------------------------------------------------- a disk


class Node:
    """A file or a folder: all its changes in order, of which the first `num_durable` are on the disk for good."""

    def __init__(self, is_folder: bool):
        self.is_folder = is_folder
        self.changes: list[tuple] = []
        self.num_durable = 0
        self.cursor = 0


class Disk:
    """Applies operations; `tree` gives what may be found after a crash now.

    Args:
        syncs: False ignores every fsync, as a program that never calls it.
    """

    def __init__(self, *, syncs: bool = True):
        self.syncs = syncs
        self.root = Node(is_folder=True)
        self._now: dict[str, Node] = {".": self.root}
        self._syncing: dict[int, tuple[Node, int]] = {}

    def apply(self, operation: Operation) -> None:
        getattr(self, f"_{operation.kind}")(operation.path, operation.argument)

    def tree(self, keeps: Callable[[Node], bool]) -> Tree:
        """Returns the tree where each change that is not durable is there if `keeps(its node)` says so."""
        tree: Tree = {}
        self._collect(self.root, "", keeps, tree)
        return tree

    def _collect(self, folder: Node, prefix: str, keeps: Callable[[Node], bool], tree: Tree) -> None:
        for name, node in self._entries(folder, keeps).items():
            if node.is_folder:
                tree[f"{prefix}{name}"] = None
                self._collect(node, f"{prefix}{name}/", keeps, tree)
            else:
                tree[f"{prefix}{name}"] = self._content(node, keeps)

    def _kept(self, node: Node, keeps: Callable[[Node], bool]) -> list[tuple]:
        return [change for i, change in enumerate(node.changes) if i < node.num_durable or keeps(node)]

    def _entries(self, folder: Node, keeps: Callable[[Node], bool]) -> dict[str, Node]:
        entries: dict[str, Node] = {}
        for old, new, node in self._kept(folder, keeps):
            if old and entries.get(old) is node:
                del entries[old]
            if new:
                entries[new] = node
        return entries

    def _content(self, node: Node, keeps: Callable[[Node], bool]) -> bytes:
        content = bytearray()
        for change in self._kept(node, keeps):
            if change[0] == "resize":
                size = change[1]
                content = content[:size] + bytes(max(0, size - len(content)))
            else:
                start, data = change[1:]
                content += bytes(max(0, start - len(content)))
                content[start : start + len(data)] = data
        return bytes(content)

    # Each operation, by its kind:

    def _folder(self, path: str) -> tuple[Node, str]:
        return self._now[str(Path(path).parent)], Path(path).name

    def _create(self, path: str, empties: int) -> None:
        if path not in self._now:
            self._link(path, Node(is_folder=False))
        node = self._now[path]
        node.cursor = 0
        if empties and node.changes:
            node.changes.append(("resize", 0))

    def _mkdir(self, path: str, _: object) -> None:
        self._link(path, Node(is_folder=True))

    def _link(self, path: str, node: Node) -> None:
        folder, name = self._folder(path)
        folder.changes.append((None, name, node))
        self._now[path] = node

    def _write(self, path: str, data: bytes) -> None:
        node = self._now[path]
        node.changes.append(("write", node.cursor, data))
        node.cursor += len(data)

    def _resize(self, path: str, size: int) -> None:
        self._now[path].changes.append(("resize", size))

    def _rename(self, path: str, new_path: str) -> None:
        (folder, name), (new_folder, new_name) = self._folder(path), self._folder(new_path)
        if folder is not new_folder:
            raise ValueError(f"{path} -> {new_path}: moves to another folder, which is not modelled")
        folder.changes.append((name, new_name, self._now[path]))
        for known in [known for known in self._now if known == path or known.startswith(f"{path}/")]:
            self._now[new_path + known.removeprefix(path)] = self._now.pop(known)

    def _remove(self, path: str, _: object) -> None:
        folder, name = self._folder(path)
        folder.changes.append((name, None, self._now.pop(path)))

    def _sync_begins(self, path: str, number: int) -> None:
        node = self._now[path]
        self._syncing[number] = node, len(node.changes)

    def _sync_ends(self, _: str, number: int) -> None:
        node, count = self._syncing.pop(number)
        if self.syncs:
            node.num_durable = max(node.num_durable, count)


def policies(num_random: int, seed: int) -> dict[str, Callable[[Node], bool]]:
    """Returns what becomes of changes that are not durable: extremes, and coins."""
    coins = {f"random {i}": random.Random(f"{seed}-{i}") for i in range(num_random)}
    return {
        "all kept": lambda node: True,
        "all lost": lambda node: False,
        "names without contents": lambda node: node.is_folder,
        "contents without names": lambda node: not node.is_folder,
        **{name: lambda node, coin=coin: coin.random() < 0.5 for name, coin in coins.items()},
    }
