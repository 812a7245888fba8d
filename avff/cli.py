"""The command line: words -> Config -> one function call (avff.commands), and how the process ends."""

import argparse
import logging
import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from avff import __version__, launched
from avff.commands.features import add_extract, add_probe
from avff.commands.scoring import add_evaluate, add_predict
from avff.commands.training import add_demo, add_describe, add_doctor, add_report, add_train
from avff.errors import AvffError, describe, exit_code

SPEAKING_SECONDS = 30.0
"""What another process of this machine may take, starting included, to say what is wrong."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the process exit code: 0 done, or an error's (avff.errors.exit_code).

    Under a launcher `avff train` ends the process itself (avff.engine.process); 75 there: saved, start the line again.
    """
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    launched.adopt_slurm_environment()
    try:
        return options.run(options) or 0
    except (AvffError, KeyboardInterrupt) as error:
        if launched.speaks():
            print(f"avff {options.command}: {describe(error)}", file=sys.stderr)
        else:
            _let_the_first_speak()
        launched.note_exit_code(exit_code(error))
        return exit_code(error)


def run() -> NoReturn:
    """The `avff` program: `main`, and the end of the process.

    After a training the interpreter's own end, with threads of gloo and wandb still alive, is now and then an abort
    (code -6), which would pass for a crash.
    """
    code = main()
    if "avff.engine.process" in sys.modules:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _let_the_first_speak() -> None:
    """Waits for the launcher's TERM, sent once the first process has spoken and ended; sooner, it would cut that short."""
    signals = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    signal.sigtimedwait(signals, SPEAKING_SECONDS)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="avff",
        description="Audio-visual forgery detection: pretrain on real video, finetune to find fakes, evaluate, predict.",
        epilog="Shards are built by tools/make_shards.py, weights are carried between stages by tools/adapt_weights.py. "
        "Start with: avff demo",
    )
    parser.add_argument("--version", action="version", version=f"avff {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (
        add_demo,
        add_describe,
        add_doctor,
        add_train,
        add_report,
        add_evaluate,
        add_predict,
        add_extract,
        add_probe,
    ):
        add(commands)
    return parser
