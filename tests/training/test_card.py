"""The card of a trained model: complete, repeatable, and without a trace of the machine."""

import yaml

from luffy import Config, load_config
from luffy.config import flatten
from luffy.training.card import model_card, shown_place
from luffy.training.checkpoint import Progress

RESULTS = {"test": {"avg@1": {"value": 0.5, "low": 0.25, "high": 0.75, "n": 40}}}
PROGRESS = Progress(step=7, tokens_trained=1234567, tokens_generated=89)


def card(tmp_path, **settings):
    config = load_config(overrides={"output": str(tmp_path), "seed": 3, **settings})
    record = {"data_digest": "abc123", "versions": {"torch": "2.13.0"}, "hardware": {"processor": "P", "threads": 2}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(record))
    return config, model_card(config, PROGRESS, RESULTS)


def test_data_method_results_versions_and_a_place_for_the_licence(tmp_path):
    _, text = card(tmp_path)
    for expected in (
        "trained with luffy", "arXiv 2504.14945", "the built-in task, SHA-256 `abc123`", "seed 3", "1,234,567",
        "| test | avg@1 | 50.0 % [25.0, 75.0] | 40 |", "torch 2.13.0", "P, 2 threads", "to be filled in",
        "luffy train recipe.yaml",
    ):  # fmt: skip
        assert expected in text


def test_its_settings_are_a_recipe_of_the_same_run(tmp_path):
    settings = {
        "method": "sft_rl", "optimizer.learning_rate": 3e-5, "data.columns.traces": ["a"],
        "evaluation.benchmarks": ["miniature/hard@4"], "evaluation.temperature": 0.7, "methods.sft_rl.sft.steps": 9,
    }  # fmt: skip
    config, text = card(tmp_path, **settings)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text.partition("```yaml\n")[2].partition("```")[0])
    again = flatten(load_config(recipe))
    here = flatten(config)
    assert {key for key in here if again[key] != here[key]} == {"output", "methods"}
    assert again["sft.steps"] == 9


def test_the_head_is_yaml_and_names_a_base_only_where_others_can_find_it(tmp_path):
    _, text = card(tmp_path, model="Some/Model-1B")
    head = yaml.safe_load(text.split("---")[1])
    assert (head["base_model"], head["library_name"]) == ("Some/Model-1B", "transformers")
    (tmp_path / "home").mkdir()
    _, text = card(tmp_path, model=f"{tmp_path}/home")
    assert "base_model" not in yaml.safe_load(text.split("---")[1])


def test_nothing_of_the_machine_is_in_it(tmp_path):
    _, text = card(
        tmp_path,
        model=f"{tmp_path}/models/base",
        **{
            "data.train": f"{tmp_path}/private/train.jsonl",
            "evaluation.source": "~/sets",
            "evaluation.benchmarks": [f"{tmp_path}/test.jsonl@2", "../up/x.jsonl"],
            "evaluation.watch": ["../up/x.jsonl"],
            "evaluation.temperature": 1.0,
        },
    )
    assert str(tmp_path) not in text
    assert "private" not in text
    assert "base, trained with luffy" in text
    assert "train.jsonl" in text
    assert shown_place("data/train.jsonl") == "data/train.jsonl"
    assert shown_place("~/a/b") == shown_place("/a/b") == shown_place("../b") == "b"


def test_a_secret_is_masked_even_if_it_came_in_past_the_configuration(tmp_path, monkeypatch):
    config = Config(model="name-with-secret-0123456789", output=str(tmp_path))
    monkeypatch.setenv("MY_TOKEN", "secret-0123456789")
    text = model_card(config, PROGRESS, {})
    assert "secret-0123456789" not in text
    assert "Nothing was measured." in text
