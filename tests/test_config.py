"""The configuration: what is known, what is refused and with which sentence, and in which order settings apply."""

import pytest

from luffy import Config, ConfigError, load_config
from luffy.algorithm import METHODS, SHAPINGS
from luffy.config import describe, differing_keys, flatten, known_keys, nearest, parse_override


@pytest.fixture
def recipe(tmp_path):
    """Writes a recipe and returns its path."""

    def write(text):
        path = tmp_path / "recipe.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def refused(path=None, overrides=()):
    with pytest.raises(ConfigError) as error:
        load_config(path, overrides)
    return str(error.value)


# -- unknown names


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("optimizer.lr", "optimizer.learning_rate"),
        ("sft.lr", "sft.learning_rate"),
        ("lr", "optimizer.learning_rate"),
        ("learning_rate", "optimizer.learning_rate"),
        ("rollout.learning_rate", "optimizer.learning_rate"),
        ("optimizer.learnig_rate", "optimizer.learning_rate"),
        ("data.group_size", "rollout.group_size"),
        ("rollout.max_token", "rollout.max_tokens"),
        ("max_tokens", "rollout.max_tokens"),
        ("temperature", "rollout.temperature"),
        ("rollout.temp", "rollout.temperature"),
        ("sft.batchsize", "sft.batch_size"),
        ("sft.bs", "sft.batch_size"),
        ("data.style", "data.miniature.style"),
        ("stepps", "steps"),
        ("metod", "method"),
        ("reward.verifier_workers", "reward.workers"),
        ("objective.entropy", "objective.entropy_coefficient"),
    ],
)
def test_an_unknown_key_suggests_the_nearest(given, meant):
    assert refused(overrides=[f"{given}=1"]) == f"override: unknown key {given!r}. Did you mean {meant!r}?"


def test_an_unknown_key_of_a_recipe_names_the_file(recipe):
    path = recipe("optimizer:\n  lr: 1.0e-5\n")
    assert refused(path) == f"{path}: unknown key 'optimizer.lr'. Did you mean 'optimizer.learning_rate'?"


def test_nothing_is_suggested_for_what_is_like_nothing():
    assert nearest("xyzzy", known_keys()) == ""
    assert refused(overrides=["xyzzy=1"]) == "override: unknown key 'xyzzy'."


def test_all_mistakes_of_a_recipe_are_named_at_once(recipe):
    message = refused(recipe("stepps: 3\nseed: -1\n"))
    assert "unknown key 'stepps'" in message
    assert "'seed' input should be greater than or equal to 0, got -1" in message


@pytest.mark.parametrize("text", ["method=lufy", "method=[luffy]", "method=3"])
def test_an_unknown_method(text):
    message = refused(overrides=[text])
    assert "method" in message
    if text == "method=lufy":
        assert message == "configuration: unknown method 'lufy'. Did you mean 'luffy'?"


def test_a_configuration_made_in_python_is_checked_too():
    with pytest.raises(ValueError, match="unknown method 'nonsense'"):
        Config(method="nonsense")


# -- wrong values


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("steps=0", "'steps' input should be greater than or equal to 1, got 0."),
        ("steps=many", "'steps' input should be a valid integer"),
        ("optimizer.learning_rate=-1", "'optimizer.learning_rate' input should be greater than 0, got -1."),
        ("optimizer.learning_rate=.nan", "'optimizer.learning_rate' input should be a finite number"),
        ("rollout.top_p=1.5", "'rollout.top_p' input should be less than or equal to 1, got 1.5."),
        ("policy.dtype=float8", "'policy.dtype' input should be 'float32', 'bfloat16' or 'float64', got 'float8'."),
        (
            "objective.shaping=sqr",
            "'objective.shaping' input should be 'none', 'regularized', 'sqrt', 'power' or 'log'",
        ),
        ("processes=0", "'processes' input should be greater than or equal to 1, got 0."),
        (
            "processes=17",
            "processes (17) is larger than problems_per_step (16): some would never generate.",
        ),
        ("output=''", "'output' string should have at least 1 character"),
        ("data.train=[a]", "'data.train' input should be a valid string, got ['a']."),
        ("optimizer.beta2=1", "'optimizer.beta2' input should be less than 1, got 1."),
    ],
)
def test_a_wrong_value_names_key_and_range(override, message):
    assert message in refused(overrides=[override])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["rollout.traces=8"], "rollout: traces (8) must be fewer than group_size (8): a group needs own rollouts."),
        (["rollout.traces=0"], "method 'luffy' learns from traces, but rollout.traces is 0."),
        (
            ["parallel.checkpoint=sharded"],
            "parallel: checkpoint=sharded holds split weights: set parallel.sharding to full.",
        ),
        (
            ["parallel.offload=true"],
            "parallel: offload puts what is split on the host: set parallel.sharding to full, or to zero2.",
        ),
        (
            ["parallel.sharding=zero2", "parallel.param_dtype=bfloat16"],
            "parallel: param_dtype is that of weights that FSDP2 splits: set parallel.sharding to full, or multiply in "
            "bfloat16 by policy.autocast=bfloat16.",
        ),
        (
            ["parallel.sharding=zero3", "parallel.checkpoint=sharded"],
            "parallel: checkpoint=sharded is written from what FSDP2 splits (DeepSpeed's own is a pickle): set "
            "parallel.sharding to full, or leave parallel.checkpoint at whole.",
        ),
        (
            ["parallel.sharding=zero1", "policy.dtype=float64"],
            "parallel.sharding=zero1 trains weights in float32: leave policy.dtype at it (policy.autocast=bfloat16 "
            "multiplies in bfloat16), or set parallel.sharding to full.",
        ),
        (
            ["parallel.sharding=zero3", "adapter.rank=4"],
            "parallel.sharding=zero3 does not split a model with an adapter in it: set parallel.sharding to full, "
            "zero1 or zero2.",
        ),
        (
            ["rollout.ahead=1"],
            "importance sampling corrects: set objective.importance_cap, for example to 2.",
        ),
        (
            ["rollout.device=cuda:1"],
            "rollout: device is that of the copy that generates ahead: set rollout.ahead to 1.",
        ),
        (["updates_per_step=17"], "updates_per_step (17) is larger than problems_per_step (16)."),
        (["data.miniature.shortest=9"], "data.miniature: shortest (9) is larger than longest (8)."),
        (["data.miniature.traced=300"], "data.miniature: traced (300) is larger than problems (256)."),
        (["evaluation.watch=[a]"], "evaluation: watch names 'a', which is not in benchmarks."),
        (["evaluation.benchmarks=miniature/hard@4"], "asks for several samples, which temperature 0 makes all alike."),
    ],
)
def test_settings_that_contradict_each_other(overrides, message):
    assert refused(overrides=overrides).endswith(message)


def test_traces_may_be_zero_where_none_are_used():
    assert load_config(overrides=["rollout.traces=0", "method=on_policy"]).rollout.traces == 0


# -- broken recipes


def test_a_missing_recipe(tmp_path):
    path = tmp_path / "none.yaml"
    assert refused(path) == f"{path}: there is no such recipe file."


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps: 1\nsteps: 2\n", "not valid YAML (line 1: key 'steps' is given twice)."),
        ("data:\n  train: a\n  train: b\n", "not valid YAML (line 2: key 'train' is given twice)."),
        ("steps: [1\n", "not valid YAML (line 2: "),
        ("\tsteps: 1\n", "not valid YAML (line 1: "),
        ("- steps\n", "expected `key: value` lines, got a list."),
        ("just text\n", "expected `key: value` lines, got a str."),
        ("optimizer: 5\n", "'optimizer' input should be a valid dictionary"),
        ("methods: [luffy]\n", "'methods' expects method names with settings below them."),
        ("methods:\n  luffy: 3\n", "methods.luffy: expected `dotted.key: value` pairs, got int."),
        ("methods:\n  lufy:\n    steps: 3\n", "methods.lufy: unknown method 'lufy'. Did you mean 'luffy'?"),
        ("1: 2\n", "1"),
    ],
)
def test_a_broken_recipe_is_a_sentence(recipe, text, message):
    path = recipe(text)
    assert refused(path).startswith(f"{path}: ")
    assert message in refused(path)


def test_a_folder_or_bytes_in_the_place_of_a_recipe(tmp_path):
    assert "cannot be read as UTF-8 text" in refused(tmp_path)
    (tmp_path / "recipe.yaml").write_bytes(b"\xff\xfe\x00s")
    assert "cannot be read as UTF-8 text" in refused(tmp_path / "recipe.yaml")


def test_empty_recipes_and_sections_mean_the_defaults(recipe):
    assert load_config(recipe("")) == load_config()
    assert load_config(recipe("optimizer:\nmethods:\n  luffy:\nsteps: 7\n")).steps == 7
    assert load_config(recipe("optimizer:\n"), ["optimizer.beta1=0.5"]).optimizer.beta1 == 0.5


def test_a_byte_order_mark_does_no_harm(recipe):
    assert load_config(recipe("\ufeffsteps: 3\n")).steps == 3


# -- overrides


@pytest.mark.parametrize("text", ["steps", "=5", " =5", ""])
def test_an_override_without_key_and_value(text):
    assert refused(overrides=[text]) == f"override {text!r}: expected key=value, for example steps=50."


def test_an_override_with_broken_yaml():
    assert refused(overrides=["steps=[1"]).startswith("override 'steps=[1': the value is not valid YAML")


def test_a_value_may_hold_equals_signs():
    assert parse_override("data.train=a=b=c.jsonl") == ("data.train", "a=b=c.jsonl")
    assert load_config(overrides=["data.train=a=b=c.jsonl"]).data.train == "a=b=c.jsonl"


@pytest.mark.parametrize("text", ["5e-5", "5.0e-5", "0.00005"])
def test_numbers_as_people_write_them(text):
    assert load_config(overrides=[f"optimizer.learning_rate={text}"]).optimizer.learning_rate == 5e-5


def test_one_benchmark_needs_no_list():
    config = load_config(overrides=["evaluation.benchmarks=miniature/hard", "evaluation.watch=miniature/hard"])
    assert config.evaluation.benchmarks == config.evaluation.watch == ("miniature/hard",)


def test_a_section_cannot_be_set_where_the_recipe_has_a_value(recipe):
    assert "'optimizer' is not a section" in refused(recipe("optimizer: 5\n"), ["optimizer.beta1=0.5"])


# -- settings of methods


METHODS_RECIPE = """
steps: 10
optimizer: {learning_rate: 1.0e-3}
methods:
  sft: {steps: 20, sft.learning_rate: 2.0e-3}
  luffy: {optimizer.learning_rate: 3.0e-3}
"""


def test_the_order_is_recipe_then_method_then_override(recipe):
    path = recipe(METHODS_RECIPE)
    assert load_config(path).optimizer.learning_rate == 3e-3
    assert load_config(path, ["optimizer.learning_rate=4e-3"]).optimizer.learning_rate == 4e-3
    sft = load_config(path, ["method=sft"])
    assert (sft.steps, sft.sft.learning_rate, sft.optimizer.learning_rate) == (20, 2e-3, 1e-3)
    assert load_config(path, ["method=mixed"]).steps == 10
    assert load_config(path, ["steps=5", "method=sft"]).steps == 5


def test_settings_of_a_method_can_be_overridden(recipe):
    path = recipe(METHODS_RECIPE)
    given = ["methods.sft.steps=30", "methods.mixed.optimizer.learning_rate=7e-3"]
    assert load_config(path, [*given, "method=sft"]).steps == 30
    assert load_config(path, [*given, "method=sft"]).sft.learning_rate == 2e-3  # the others stay
    assert load_config(path, [*given, "method=mixed"]).optimizer.learning_rate == 7e-3
    assert load_config(path, given).optimizer.learning_rate == 3e-3


def test_unknown_keys_of_methods_that_are_not_chosen_are_refused(recipe):
    path = recipe("method: luffy\nmethods:\n  sft:\n    sft.lr: 3\n")
    assert refused(path) == f"{path}: methods.sft: unknown key 'sft.lr'. Did you mean 'sft.learning_rate'?"
    assert "unknown key 'lr'" in refused(overrides=["methods.sft.lr=3"])
    assert "unknown method 'stf'. Did you mean 'sft'?" in refused(overrides=["methods.stf.steps=3"])


def test_settings_of_a_method_cannot_choose_another_method(recipe):
    assert "unknown key 'method'" in refused(recipe("methods:\n  sft:\n    method: luffy\n"))


# -- the schema


def test_every_key_is_described_with_its_default():
    described = {key: text for key, _, text in describe()}
    assert list(described) == list(flatten(load_config()))
    assert all(len(text) > 10 and text.rstrip()[-1] in ".?" for text in described.values()), described


def test_literals_of_the_schema_are_the_tables_of_the_algorithm():
    annotation = type(load_config().objective).model_fields["shaping"].annotation
    assert set(annotation.__args__[0].__args__) == set(SHAPINGS)
    for method in METHODS:
        assert load_config(overrides={"method": method}).method == method


def test_a_configuration_survives_being_written(recipe):
    config = load_config(recipe(METHODS_RECIPE), ["evaluation.benchmarks=miniature/hard"])
    assert Config.model_validate(config.model_dump(mode="json")) == config


def test_which_keys_tell_runs_apart():
    free = {"steps": 1, "output": "x", "evaluation.limit": 3, "methods.sft.steps": 3}
    other = load_config(overrides=free | {"seed": 4, "policy.dtype": "float64"})
    assert differing_keys(load_config(), other) == ["seed", "policy.dtype"]
