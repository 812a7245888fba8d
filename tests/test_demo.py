"""The demo's bookkeeping: finished phases are kept, changed ones refused, failures end it; its commands exist."""

import json
import shlex
from pathlib import Path

import pytest

from avff import demo
from avff.config import load_config
from avff.errors import AvffError, ConfigError

ROOT = Path(__file__).parents[1]


@pytest.fixture
def output(tmp_path):
    folder = tmp_path / "demo"
    folder.mkdir()
    return folder


def counting_phase(output: Path, name: str = "count", mark: str = "x") -> demo.Phase:
    """Appends to a file each time that it really runs."""
    code = f"open({str(output / name)!r}, 'a').write({mark!r})"
    return demo.Phase(name, f"phase {name}", [f"-c {shlex.quote(code)}"])


def test_a_finished_phase_is_kept_and_says_so(output, capfd):
    demo.run_phases([counting_phase(output)], output)
    demo.run_phases([counting_phase(output)], output)
    assert (output / "count").read_text() == "x"
    assert "phase count: kept from an earlier demo" in capfd.readouterr().err


def test_a_changed_phase_is_refused_and_so_is_what_follows_it(output):
    demo.run_phases([counting_phase(output, "one"), counting_phase(output, "two")], output)
    with pytest.raises(ConfigError, match=r"phase 'one' was made by other commands.*--fresh"):
        demo.run_phases([counting_phase(output, "one", mark="y"), counting_phase(output, "two")], output)


def test_a_changed_config_is_a_changed_phase(output, tmp_path):
    config = tmp_path / "a.yaml"
    config.write_text("a: 1\n")
    phase = counting_phase(output)._replace(configs=[config])
    demo.run_phases([phase], output)
    config.write_text("a: 2\n")
    with pytest.raises(ConfigError, match="other commands or configs"):
        demo.run_phases([phase], output)


def test_a_failing_command_ends_the_demo_and_is_run_again(output):
    failing = demo.Phase("fails", "phase fails", ["-c 'import sys; sys.exit(7)'"])
    with pytest.raises(AvffError, match="phase 'fails' ended with exit code 7"):
        demo.run_phases([counting_phase(output), failing, counting_phase(output, "after")], output)
    assert not (output / "after").exists()
    demo.run_phases([counting_phase(output), failing._replace(commands=["-c pass"])], output)
    assert set(json.loads((output / demo.PHASES).read_text())) == {"count", "fails"}


def test_a_folder_of_something_else_is_never_deleted_or_written_to(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="holds no demo"):
        demo.delete(tmp_path)
    with pytest.raises(ConfigError, match="is not empty and holds no demo"):
        demo.run_phases([], tmp_path)
    assert (tmp_path / "thesis.txt").exists()


def test_every_command_of_the_demo_names_files_that_exist():
    phases = demo.plan_phases(Path("runs/demo"))
    assert [phase.name for phase in phases][-2:] == ["evaluate", "predict"]
    for phase in phases:
        for path in phase.configs:
            load_config(ROOT / path)
        for command in phase.commands:
            script = shlex.split(command)[0]
            assert script == "-m" or (ROOT / script).is_file(), command
