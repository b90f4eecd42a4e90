import json
import shutil

import pytest
from tests.fake_server import Raw, chat, serving

from luffy.config import load_config
from luffy.errors import ConfigError, DataError
from luffy.evaluation import compare_models, evaluate, models
from luffy.policy import model_folder
from luffy.report.evaluation_page import render_evaluation

CONFIG = {"rollout.max_tokens": 12, "evaluation.temperature": 1.0, "evaluation.limit": 5}


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setitem(models.CHUNKS, "transformers", 4)


def texts(result):
    return [[sample["text"] for sample in record["samples"]] for record in result.generations]


def test_a_killed_evaluation_ends_as_one_that_was_not(tmp_path, small_chunks):
    config = load_config(overrides=CONFIG)
    whole = evaluate("miniature", ["miniature/hard@2"], config, output=tmp_path / "whole").results["miniature/hard"]

    class KillError(Exception):
        pass

    def kill(name, done, total, accuracy):
        if done >= 4:
            raise KillError

    with pytest.raises(KillError):
        evaluate("miniature", ["miniature/hard@2"], config, output=tmp_path / "killed", on_progress=kill)
    (parts,) = (tmp_path / "killed" / "miniature").glob("miniature-hard-*.parts")
    assert len(list(parts.iterdir())) == 2
    asked = []
    again = evaluate(
        "miniature", ["miniature/hard@2"], config, output=tmp_path / "killed", on_progress=lambda *a: asked.append(a)
    ).results["miniature/hard"]
    assert texts(again) == texts(whole)
    assert again.metrics() == whole.metrics()
    assert not parts.exists()


def test_a_finished_one_is_read_and_not_sampled_again(tmp_path, monkeypatch):
    config = load_config(overrides=CONFIG)
    first = evaluate("miniature", ["miniature/short@2"], config, output=tmp_path)
    monkeypatch.setattr(models, "open_sampler", lambda *_: pytest.fail("the model is loaded again"))
    second = evaluate("miniature", ["miniature/short@2"], config, output=tmp_path)
    assert first.to_json() == second.to_json()
    assert texts(first.results["miniature/short"]) == texts(second.results["miniature/short"])


def test_samples_of_other_settings_or_weights_are_not_mixed_in(tmp_path):
    config = load_config(overrides=CONFIG)
    model = tmp_path / "model"
    shutil.copytree(model_folder("miniature"), model)

    def files_after(config):
        evaluate(str(model), ["miniature/short"], config, output=tmp_path / "out")
        return {path.name for path in (tmp_path / "out").rglob("*.parquet")}

    first = files_after(config)
    assert files_after(config) == first
    colder = files_after(load_config(overrides=CONFIG | {"evaluation.temperature": 0.5}))
    assert len(colder) == 2
    weights = model / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(content)
    assert len(files_after(config)) == 3


def test_a_benchmark_has_its_own_verifier(tmp_path):
    rows = [{"question": "1 + 1?", "answer": "So 2.\n#### 2"}, {"question": "2 + 2?", "answer": "#### 4"}]
    (tmp_path / "gsm8k.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = load_config(
        overrides={
            "evaluation.source": str(tmp_path),
            "evaluation.engine": "endpoint",
            "evaluation.endpoint": "http://x/v1",
            "reward.kind": "exact",
        }
    )
    with serving(lambda request, number: chat("That makes 2.0 of them")) as server:
        config = config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"endpoint": server.url})})
        result = evaluate("teacher", ["gsm8k"], config).results["gsm8k"]
    assert result.accuracy.value == 0.5  # `number` takes 2.0 for 2; `exact` would not


def test_an_endpoint_that_fails_leaves_what_was_done(tmp_path, monkeypatch):
    monkeypatch.setitem(models.CHUNKS, "endpoint", 2)
    monkeypatch.setattr("luffy.rollout.endpoint.FIRST_PAUSE", 0.001)
    rows = [{"prompt": f"{n}?", "answer": str(n)} for n in range(6)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    broken = True

    def respond(request, number):
        n = request["messages"][-1]["content"].rstrip("?")
        return Raw(400, b"no") if broken and n == "4" else chat(n)

    with serving(respond) as server:
        config = load_config(overrides={"evaluation.engine": "endpoint", "evaluation.endpoint": server.url})
        with pytest.raises(Exception, match="status 400"):
            evaluate("teacher", [str(tmp_path / "mine.jsonl")], config, output=tmp_path / "out")
        broken = False
        server.requests.clear()
        result = evaluate("teacher", [str(tmp_path / "mine.jsonl")], config, output=tmp_path / "out").results["mine"]
    assert result.accuracy.value == 1.0
    assert sorted(request["messages"][-1]["content"] for request in server.requests) == ["4?", "5?"]


def test_overlap_with_the_training_data_is_said_loudly(tmp_path, caplog):
    row = {
        "prompt": "How many of the seven green apples did Tom eat on that long Sunday afternoon in May?",
        "answer": "2",
    }
    for name in ("train", "test"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    config = load_config(overrides={"rollout.max_tokens": 4})
    evaluate("miniature", [str(tmp_path / "test.jsonl")], config, trained_on=str(tmp_path / "train.jsonl"))
    assert "1 of its 1 problems overlap with the training data" in caplog.text


def test_models_side_by_side(tmp_path):
    config = load_config(overrides=CONFIG | {"evaluation.temperature": 0.0})
    results = [evaluate(model, ["miniature/worked"], config) for model in ("miniature", "miniature-eager")]
    comparison = compare_models(results)
    assert comparison.columns == ["miniature/worked"]
    assert [test.model for test in comparison.tests] == ["miniature-eager"]
    page = render_evaluation(results, comparison, config)
    assert "miniature-eager" in page
    assert "script-src" not in page


def test_what_a_model_says_is_escaped(tmp_path):
    (tmp_path / "x.jsonl").write_text(json.dumps({"prompt": "<b>?</b>", "answer": "1"}) + "\n")
    with serving(lambda request, number: chat("<script>alert(1)</script>")) as server:
        config = load_config(overrides={"evaluation.engine": "endpoint", "evaluation.endpoint": server.url})
        result = evaluate("teacher", [str(tmp_path / "x.jsonl")], config)
    page = render_evaluation([result], compare_models([result]), config)
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "<b>?" not in page


def test_an_endpoint_needs_an_address():
    with pytest.raises(ConfigError, match=r"evaluation\.endpoint"):
        load_config(overrides={"evaluation.engine": "endpoint"})


def test_a_source_without_the_benchmark(tmp_path):
    config = load_config(overrides={"evaluation.source": str(tmp_path)})
    with pytest.raises(DataError, match=r"neither math500\.parquet"):
        evaluate("miniature", ["math500"], config)
