"""wandb, trackio and MLflow, each where it is installed: what a run hands over arrives, and none is ever in the way.

`make test-trackers` installs them. Every run is a command of its own: these packages leave processes and settings
behind, and some print, or wait for a server at the end of the program.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from luffy.config import flatten, load_config
from small_runs import SMALL

RECIPE = Path(__file__).parents[2] / "recipes/miniature.yaml"
SECRET = "not-a-real-key-but-as-long-as-one-0123456789"
KEYS = dict.fromkeys(("WANDB_API_KEY", "HF_TOKEN", "MLFLOW_TRACKING_PASSWORD", "OPENAI_API_KEY"), SECRET)
NOWHERE = "http://127.0.0.1:9"  # nothing listens there
DOWN = {
    "wandb": {"WANDB_BASE_URL": NOWHERE},
    "trackio": {"TRACKIO_SERVER_URL": f"{NOWHERE}/?write_token={SECRET}"},
    "mlflow": {"MLFLOW_TRACKING_URI": NOWHERE},
}


PROGRAM = "from luffy.training import trackers; trackers.PATIENCE = {}; from luffy.cli import main; main()"


def run(folder, tracker, patience=5.0, **environment):
    """Train a few steps with the tracker; the finished command, and seconds from the end of the run to that of it.

    patience: of the end of the run; what is to arrive may take longer than the few steps, on a busy machine.
    """
    settings = [f"{key}={json.dumps(value)}" for key, value in SMALL.items()]
    luffy = [sys.executable, "-c", PROGRAM.format(patience)]
    command = [*luffy, "train", RECIPE, *settings, f"tracker={tracker}", f"output={folder}/run"]
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        [*command, "--json"],
        capture_output=True,
        text=True,
        timeout=500,
        cwd=folder,
        env=os.environ | KEYS | {"HOME": str(folder), "COLUMNS": "300"} | environment,
    )
    assert done.returncode == 0, done.stderr
    return done, time.time() - (folder / "run/summary.json").stat().st_mtime


def expected(folder):
    """What has to arrive: name -> [(step, value)] of every number of a step, and of the evaluations."""
    found = {}
    lines = [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]
    for line in lines:
        for name, value in line.items():
            if isinstance(value, int | float) and not isinstance(value, bool) and name != "step":
                found.setdefault(name, []).append((line["step"], value))
    for line in (folder / "run/evaluations.jsonl").read_text().splitlines():
        one = json.loads(line)
        found.setdefault(f"{one['set']}/avg@1", []).append((one["step"], one["avg@1"]["value"]))
    return found


def assert_nothing_secret(folder):
    for path in folder.rglob("*"):
        if path.is_file():
            assert SECRET.encode() not in path.read_bytes(), path


def assert_arrived(folder, arrived, rename=str):
    """arrived: name -> [(step, value)]."""
    wanted = expected(folder)
    assert len(wanted) > 20
    for name, points in wanted.items():
        assert sorted(arrived[rename(name)]) == [(step, pytest.approx(value)) for step, value in points], name


def assert_configured(folder, values):
    """values: what the tracker knows of the configuration."""
    config = load_config(RECIPE, [f"{key}={json.dumps(value)}" for key, value in SMALL.items()])
    for key in ("optimizer.learning_rate", "rollout.group_size", "method", "seed"):
        assert str(values[key]) == str(flatten(config)[key]), key
    assert "output" not in values


# --- what arrives


def wandb_records(path):
    """The records of wandb's own file: blocks of 32 KiB, in them parts with a header of checksum, length and kind."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, place, whole = path.read_bytes(), 7, b""
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        length, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        whole += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # all of a record, or its last part
            record = Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


def test_wandb(tmp_path):
    pytest.importorskip("wandb.proto")
    done, _ = run(tmp_path, "wandb", 200, WANDB_MODE="offline")
    assert json.loads(done.stdout)["status"] == "finished"
    assert "tracker=" not in done.stderr
    (path,) = tmp_path.glob("run/trackers/wandb/offline-run-*/run-*.wandb")
    arrived, values = {}, {}
    for record in wandb_records(path):
        values |= {item.key: json.loads(item.value_json) for item in record.config.update}
        items = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        step = items.get("_step", record.history.step.num)
        for name, value in items.items():
            arrived.setdefault(name, []).append((step, value))
    assert_arrived(tmp_path, arrived)
    assert_configured(tmp_path, values)
    assert_nothing_secret(tmp_path)


def test_trackio(tmp_path):
    pytest.importorskip("trackio")
    done, _ = run(tmp_path, "trackio", 200, TRACKIO_DIR=str(tmp_path / "trackio"))
    assert json.loads(done.stdout)["status"] == "finished"  # it prints to stdout when it may
    assert "tracker=" not in done.stderr
    program = (
        "import json; from trackio import Api; from trackio.sqlite_storage import SQLiteStorage\n"
        "(run,) = Api().runs('luffy')\n"
        "print(json.dumps([run.name, run.config, SQLiteStorage.get_logs('luffy', run.name)]))"
    )
    shown = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env=os.environ | {"TRACKIO_DIR": str(tmp_path / "trackio")},
        check=True,
    )
    name, values, logs = json.loads(shown.stdout)
    assert name == "luffy, seed 0"
    arrived = {}
    for line in logs:
        for key, value in line.items():
            arrived.setdefault(key, []).append((line["step"], value))
    assert_arrived(tmp_path, arrived)
    assert_configured(tmp_path, values)
    assert_nothing_secret(tmp_path)


def test_mlflow(tmp_path):
    pytest.importorskip("mlflow")
    store = f"sqlite:///{tmp_path}/mlflow.db"
    done, _ = run(tmp_path, "mlflow", 200, MLFLOW_TRACKING_URI=store)
    assert json.loads(done.stdout)["status"] == "finished"
    assert "mlflow" not in done.stderr.lower()
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=store)
    (experiment,) = client.search_experiments(filter_string="name = 'luffy'")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED"
    arrived = {
        name: [(point.step, point.value) for point in client.get_metric_history(found.info.run_id, name)]
        for name in found.data.metrics
    }
    assert_arrived(tmp_path, arrived, lambda name: name.replace("@", "_at_"))
    assert_configured(tmp_path, found.data.params)
    assert_nothing_secret(tmp_path)


# --- nobody there


@pytest.mark.parametrize("tracker", sorted(DOWN))
def test_a_server_that_is_down_is_named_once_and_harms_nothing(tmp_path, tracker):
    pytest.importorskip({"wandb": "wandb.proto"}.get(tracker, tracker))
    done, seconds = run(tmp_path, tracker, **DOWN[tracker])
    assert json.loads(done.stdout)["status"] == "finished"
    itself = tracker == "trackio" and "could not be sent to the remote server" in done.stderr  # kept for the next time
    assert done.stderr.count(f"tracker={tracker}") == done.stderr.count("WARNING") == (not itself), done.stderr
    assert itself or "metrics.jsonl has everything" in done.stderr
    assert seconds < 45  # wandb alone would wait for 90 seconds at the end of the program
    assert len((tmp_path / "run/metrics.jsonl").read_text().splitlines()) == SMALL["steps"]
    assert SECRET not in done.stdout + done.stderr
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["config"]["tracker"] == [tracker]
