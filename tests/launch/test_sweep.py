"""From config files and swept values to runs with names of their own."""

import pytest

from avff.errors import ConfigError
from launch.sweep import combinations, plan_runs

STAGE1, STAGE3 = "configs/demo/stage1.yaml", "configs/demo/stage3.yaml"


@pytest.fixture
def plan(monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)

    def plan(paths, overrides=(), sweeps=(), num_tasks=1):
        return plan_runs(paths, overrides, sweeps, num_tasks)

    return plan


def test_one_config_is_one_run_of_its_own_name(plan):
    [config] = plan([STAGE1], ["optim.num_steps=70"])
    assert (config.name, config.optim.num_steps) == ("stage1", 70)


def test_names_say_what_was_swept(plan):
    configs = plan([STAGE1], (), ["optim.learning_rate=1e-4,0.003", "seed=0,1"])
    assert [config.name for config in configs] == [
        "stage1-learning_rate=0.0001-seed=0",
        "stage1-learning_rate=0.0001-seed=1",
        "stage1-learning_rate=0.003-seed=0",
        "stage1-learning_rate=0.003-seed=1",
    ]
    assert [config.optim.learning_rate for config in configs] == [1e-4, 1e-4, 3e-3, 3e-3]


def test_several_configs_are_swept_alike(plan):
    names = [config.name for config in plan([STAGE1, STAGE3], (), ["seed=1,2"])]
    assert names == ["stage1-seed=1", "stage1-seed=2", "stage3-seed=1", "stage3-seed=2"]


def test_a_list_is_one_value():
    assert combinations(["optim.betas=[0.9, 0.95],[0.9, 0.99]", "name=a"]) == [
        ("optim.betas=[0.9, 0.95]", "name=a"),
        ("optim.betas=[0.9, 0.99]", "name=a"),
    ]


def test_a_list_makes_a_name_that_is_a_folder(plan):
    assert plan([STAGE1], (), ["optim.betas=[0.9, 0.95]"])[0].name == "stage1-betas=0.9_0.95"


def test_what_keeps_any_run_from_starting_is_reported_at_once(plan):
    with pytest.raises(ConfigError) as caught:
        plan(["configs/nowhere.yaml", STAGE1], (), ["optim.learning_rat=1,2"], num_tasks=4)
    text = str(caught.value)
    assert text.count("configs/nowhere.yaml: no such config file") == 1
    assert text.count("did you mean optim.learning_rate?") == 1


def test_ranks_have_to_suit_the_batch(plan):
    with pytest.raises(ConfigError, match=f"{STAGE1}: engine.micro_batch_size 8 does not divide the 4 clips"):
        plan([STAGE1], num_tasks=4)


def test_two_runs_in_one_folder_are_refused(plan):
    with pytest.raises(ConfigError, match="runs/demo/same: two runs would train here"):
        plan([STAGE1], ["name=same"], ["name=same,same"])


def test_a_sweep_without_values_or_a_second_time_is_refused(plan):
    with pytest.raises(ConfigError, match=r"--sweep 'seed': write section\.key=value,value"):
        plan([STAGE1], (), ["seed"])
    with pytest.raises(ConfigError, match="--sweep seed: given twice"):
        plan([STAGE1], (), ["seed=1", "seed=2"])
