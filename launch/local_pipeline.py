"""The steps of a pipeline on this machine, one after the other."""

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from avff.engine.run_state import EXIT, read_exit
from avff.errors import ConfigError
from launch.pipeline_steps import Progress, State, Step, Train, save_step_config
from launch.script import config_path

ROOT = Path(__file__).resolve().parents[1]
PASSED_ON = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""Save and stop (launch/torchrun.sh). Ctrl-C reaches the step by itself, as the terminal sends it to all."""


def run_here(steps: Sequence[Step], progress: Sequence[Progress], folder: Path, *, processes: int | None) -> int:
    """Runs what is not done; stops at the first step that fails, since the others depend on it.

    Args:
        folder: for the resolved configs.
        processes: of each training; None leaves it to launch/torchrun.sh.

    Returns:
        0, or the code of the step that failed.

    Raises:
        ConfigError: something works on one of the steps already.
    """
    _refuse_active(steps, progress)
    for index, (step, one) in enumerate(zip(steps, progress, strict=True)):
        if one.state is State.DONE:
            continue
        _say(f"== {step.name}\n$ {command_line(step, folder, processes)}")
        code, reason = _run(step, folder, processes)
        if code:
            later = ", ".join(one.name for one in steps[index + 1 :])
            _say(f"== {step.name} ended with code {code}: {reason}" + (f"; not started: {later}" if later else ""))
            _say("The same line goes on from here.")
            return code
    return 0


def command_line(step: Step, folder: Path, processes: int | None) -> str:
    """Returns a step's command as one would type it."""
    variables, command = _command(step, folder, processes)
    return " ".join([*(f"{name}={value}" for name, value in variables.items()), shlex.join(command)])


def _refuse_active(steps: Sequence[Step], progress: Sequence[Progress]) -> None:
    pairs = zip(steps, progress, strict=True)
    active = [f"{step.name} ({one.detail})" for step, one in pairs if one.state is State.ACTIVE]
    if active:
        raise ConfigError(f"{', '.join(active)}: wait for it, or stop it; nothing was started here")


def _command(step: Step, folder: Path, processes: int | None) -> tuple[dict[str, str], list[str]]:
    path = config_path(step.config, folder)
    if isinstance(step, Train):
        return ({"PROCESSES": str(processes)} if processes else {}), [str(ROOT / "launch" / "torchrun.sh"), str(path)]
    return {}, [sys.executable, *step.words(ROOT, path)]


def _run(step: Step, folder: Path, processes: int | None) -> tuple[int, str]:
    """Runs a step to its end; returns its code, and the reason where that is not 0."""
    save_step_config(step, folder)
    exit_path = step.output / EXIT
    before = _changed_ns(exit_path)
    variables, command = _command(step, folder, processes)
    code = _wait_passing_signals(command, {**os.environ, **variables})
    if _changed_ns(exit_path) != before and (end := read_exit(step.output)):
        return code, end["reason"]
    return code, "see above"


def _wait_passing_signals(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Runs a command, and returns its code; 128 more than a signal's number where it, or this process, got one."""
    received: list[int] = []
    processes: list[subprocess.Popen] = []

    def pass_on(number: int, _frame: object) -> None:
        received.append(number)
        for process in processes:
            _send(process, number)

    handlers = {number: signal.signal(number, pass_on) for number in (*PASSED_ON, signal.SIGINT)}
    try:
        process = subprocess.Popen(command, env=environment)
        processes.append(process)
        for number in received.copy():  # those that came while it was being started
            _send(process, number)
        code = process.wait()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if code == 0 and received:
        return 128 + received[0]
    return 128 - code if code < 0 else code


def _send(process: subprocess.Popen, number: int) -> None:
    if number != signal.SIGINT:
        process.send_signal(number)


def _changed_ns(path: Path) -> int:
    return path.stat().st_mtime_ns if path.is_file() else 0


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
