"""How commands are added to the command line."""

import argparse

OVERRIDES_HELP = "config overrides, such as optim.learning_rate=1e-4 (lists and text as in YAML)"


def add_command(commands, name: str, run, help: str, description: str, epilog: str = "") -> argparse.ArgumentParser:
    """Adds a command whose parsed words go to `run`, which returns an exit code or None for 0."""
    parser = commands.add_parser(
        name,
        help=help,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser
