"""docs/weights.md, "Between stages": every row of the table is tried between little networks."""

import re
from pathlib import Path

import pytest

from avff.config import Config
from avff.errors import CheckpointError
from avff.models import build_model
from avff.models.adapt_stages import adapt_weights
from avff.models.lora import is_lora
from avff.models.weights import load_into
from avff.strict_yaml import apply_override

PAGE = (Path(__file__).parents[2] / "docs/weights.md").read_text()
MOVES = [("pretrain", "pretrain"), ("pretrain", "finetune"), ("finetune", "finetune")]


def rows() -> list[tuple[str, str, str, str, str]]:
    """(change, overrides of the source, of the target, move, outcome) of every cell that is not a dash."""
    table = PAGE.split("| change | tried as |")[1].split("\n\n")[0]
    found = []
    for line in table.splitlines()[2:]:
        change, tried, *outcomes = (cell.strip() for cell in line.strip("|").split("|"))
        before, _, after = tried.strip("`").rpartition(" -> ")
        for move, outcome in zip(MOVES, outcomes, strict=True):
            if outcome != "—":
                found.append((change, before, after, f"{move[0]} to {move[1]}", outcome.partition(":")[0]))
    return found


def changed(odd_config, stage: str, overrides: str, name: str) -> Config:
    values: dict = {}
    for override in overrides.split():
        apply_override(values, override)
    return odd_config(stage, name=name, seed=len(name), **values)


def outcome_of(source: Config, target: Config) -> str:
    tensors = build_model(source).state_dict()
    try:
        adapted, ledger = adapt_weights(tensors, source, target)
    except CheckpointError:
        return "refused"
    load_into(build_model(target), adapted, "adapted", ledger.new)
    of_stage_3 = [name for name in ledger.new if re.match(r"(\w+_pool|\w+_head)\.", name)]
    added = [name for name in ledger.new if is_lora(name)]
    happened = {
        "interpolated": ledger.interpolated,
        "folded": ledger.folded,
        "re-initialised": ledger.new.keys() - {*of_stage_3, *added},
        "added": added,
    }
    words = [word for word, names in happened.items() if names]
    return ", ".join(words) or ("noted" if ledger.notes else "copied")


@pytest.mark.parametrize(("change", "before", "after", "move", "outcome"), rows())
def test_a_change_does_what_the_page_says(odd_config, change, before, after, move, outcome) -> None:
    first, second = move.split(" to ")
    source, target = changed(odd_config, first, before, "source"), changed(odd_config, second, after, "the target")
    assert outcome_of(source, target) == outcome


def test_the_table_was_found() -> None:
    assert len(rows()) > 60 and {row[4] for row in rows()} >= {"copied", "noted", "folded", "refused", "re-initialised"}
