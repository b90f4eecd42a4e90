"""A run with hostile names in its data and secrets in its environment: where its files lie, and what is in them."""

import logging

import pytest

from luffy import ConfigError, Problem, Trace, load_config, train
from luffy.redaction import without_secrets
from luffy.report import write_report

KEYS = {
    "HF_TOKEN": "hf_FAKEFAKEFAKEFAKEFAKE0001",
    "OPENAI_API_KEY": "sk-FAKEFAKEFAKEFAKEFAKE0002",
    "WANDB_API_KEY": "FAKEFAKEFAKEFAKEFAKEFAKE0003",
    "DATABASE_PASSWORD": "FAKE-correct-horse-battery-0004",
}
IDS = ["../../outside", "/tmp/outside-absolute", "..", "a/../../b", "x\n../y", "CON:", "~/z", "%2e%2e%2fq"]


@pytest.fixture(autouse=True)
def _keys(monkeypatch):
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)


def files_under(folder):
    return {path for path in folder.rglob("*") if path.is_file()}


def test_names_in_data_stay_in_the_folder_and_secrets_out_of_it(tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    work = tmp_path / "deep" / "work"
    work.mkdir(parents=True)
    rows = [
        Problem(name, f"Q{n}+5:", f"{n + 5}", traces=(Trace(f"{n}+5={n + 5}#{n + 5}"),))
        for n, name in enumerate(IDS, 17)
    ]
    for name in ("...jsonl", "a..b.jsonl"):
        (work / name).write_text('{"prompt": "Q17+5:", "answer": "22", "id": "../../up"}\n')
    before = files_under(tmp_path)
    settings = {
        "steps": 2, "problems_per_step": 4, "rollout.group_size": 3, "rollout.max_tokens": 20, "reward.workers": 0,
        "rollouts_every": 1, "output": str(work / "run"), "evaluation.max_tokens": 8,
        "evaluation.benchmarks": [f"{work}/...jsonl", f"{work}/a..b.jsonl"],
    }  # fmt: skip
    train(load_config(overrides=settings), problems=rows)
    write_report([work / "run"], work / "run" / "report.html")
    made = files_under(tmp_path) - before
    assert {path for path in made if not path.is_relative_to(work / "run")} == set()
    names = {str(path.relative_to(work / "run")) for path in made}
    assert {"config.yaml", "report.html", "model/README.md", "rollouts/step-000001.jsonl", "metrics.jsonl"} <= names
    for path in made:
        content = path.read_bytes()
        assert [name for name, key in KEYS.items() if key.encode() in content] == [], path
    assert [name for name, key in KEYS.items() if key in caplog.text] == []


# -- a secret where a setting belongs


@pytest.mark.parametrize("key", ["model", "data.train", "evaluation.source", "output", "reward.kind"])
def test_a_secret_in_a_setting_is_refused_without_being_repeated(key):
    with pytest.raises(ConfigError, match=f"{key} holds the value of the environment variable HF_TOKEN") as error:
        load_config(overrides={key: f"https://user:{KEYS['HF_TOKEN']}@host/x"})
    assert KEYS["HF_TOKEN"] not in str(error.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"evaluation.endpoint": "https://me:SECRETSECRET@host/v1"},
        {"evaluation.endpoint": "https://host/v1?key=SECRETSECRET"},
        {"evaluation.api_key_variable": "sk-SECRETSECRET"},
        {"evaluation.api_key_variable": "hf_SECRETSECRET"},
    ],
)
def test_a_key_in_place_of_an_address_or_a_name_is_refused_without_being_repeated(settings):
    with pytest.raises(ConfigError, match="variable") as error:
        load_config(overrides=settings)
    assert "SECRETSECRET" not in str(error.value)


# -- what is printed


def test_every_secret_is_masked_and_short_values_are_not(monkeypatch):
    monkeypatch.setenv("SOME_KEY", "short")
    monkeypatch.setenv("A_LONGER_TOKEN", KEYS["HF_TOKEN"] + "-and-more")
    text = f"short {' '.join(KEYS.values())} {KEYS['HF_TOKEN']}-and-more"
    assert without_secrets(text) == "short *** *** *** *** ***"


def test_messages_of_libraries_are_masked(monkeypatch, capsys):
    from luffy.cli import console

    root = logging.getLogger()
    monkeypatch.setattr(console.messages, "width", 200)
    before = list(root.handlers)
    for handler in before:
        root.removeHandler(handler)
    try:
        console.configure_logging()
        logging.getLogger("some_library").warning("401 with token %s \x1b]0;title\x07", KEYS["HF_TOKEN"])
    finally:
        for handler in list(root.handlers):
            root.removeHandler(handler)
        for handler in before:
            root.addHandler(handler)
    printed = capsys.readouterr().err
    assert r"401 with token *** \x1b]0;title\x07" in printed
    assert "\x1b" not in printed


@pytest.mark.parametrize(
    "row", ['{"prompt": "\\u001b[2J", "answer": ""}', '{"prompt": "a", "\\u001b]0;x\\u0007": "1"}']
)
def test_a_message_about_data_cannot_steer_the_terminal(row, tmp_path, monkeypatch, capsys):
    from luffy import cli
    from luffy.cli import console

    monkeypatch.setattr(console.results, "width", 200)
    monkeypatch.setattr(console.messages, "width", 200)
    (tmp_path / "x.jsonl").write_text(row + "\n")
    for command in (["data", "check", f"{tmp_path}/x.jsonl"], ["train", "recipes/none\x1b[2J.yaml"]):
        monkeypatch.setattr("sys.argv", ["luffy", *command])
        with pytest.raises(SystemExit):
            cli.main()
    printed = capsys.readouterr()
    assert "\x1b" not in printed.out + printed.err
    assert "\\x1b" in printed.err
