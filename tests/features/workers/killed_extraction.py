"""Extracts features and kills its own process once a function has run so many times.

Arguments: module and name of the function, the number of calls, and JSON of `extract`'s arguments.
"""

import importlib
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from avff.features.extract import extract


def kill_at(calls: int, function: Callable[..., Any]) -> Callable[..., Any]:
    count = 0

    def wrapped(*arguments: Any, **options: Any) -> Any:
        nonlocal count
        result = function(*arguments, **options)
        count += 1
        if count == calls:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return wrapped


if __name__ == "__main__":
    module_name, name, calls, arguments = sys.argv[1:]
    torch.set_num_threads(1)
    module = importlib.import_module(module_name)
    setattr(module, name, kill_at(int(calls), getattr(module, name)))
    options = json.loads(arguments)
    checkpoint, shards, output = (options.pop(key) for key in ("checkpoint", "shards", "output"))
    extract(checkpoint, [Path(path) for path in shards], Path(output), **options)
