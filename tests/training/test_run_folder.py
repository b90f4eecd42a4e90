"""Run folders and checkpoints on disk: whole or not at all, locked, and only for the run they belong to."""

import errno
import json
import os
import subprocess
import sys

import pytest
import torch

from luffy import RunError, load_config
from luffy.files import read_lines
from luffy.policy import LoadedModel
from luffy.training import RunFolder
from luffy.training.checkpoint import (
    Progress,
    find_checkpoint,
    list_checkpoints,
    load_optimizer,
    load_weights,
    read_ahead,
    read_progress,
    save_checkpoint,
)
from luffy.training.learner import Learner
from luffy.types import Rollout
from tiny_models import build_model


class NoTokenizer:
    def save_pretrained(self, folder):
        pass


def open_folder(path, digest="d", **overrides):
    return RunFolder(load_config(overrides={"output": str(path)} | overrides), digest=digest)


def start(path, **overrides):
    """A folder in which a run has begun."""
    folder = open_folder(path, **overrides)
    folder.append_metrics(1, {"update/loss": 1.0})
    folder.close()


def no_space(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# -- the folder and its configuration


def test_the_same_configuration_opens_it_again(tmp_path):
    start(tmp_path)
    open_folder(tmp_path).close()


@pytest.mark.parametrize(
    "change", [{"steps": 500}, {"checkpoint_every": 3}, {"evaluation.limit": 5}, {"methods.sft.steps": 3}]
)
def test_what_does_not_change_the_steps_before_may_change(tmp_path, change):
    start(tmp_path)
    open_folder(tmp_path, **change).close()


def test_another_configuration_is_refused_naming_the_keys(tmp_path):
    start(tmp_path)
    with pytest.raises(RunError, match=r"seed, optimizer\.learning_rate differ \(seed: 0 there, 1 here\)") as error:
        open_folder(tmp_path, seed=1, **{"optimizer.learning_rate": 0.5})
    assert "Choose another output= or delete the folder" in str(error.value)
    open_folder(tmp_path).close()  # the refusal neither holds the lock nor replaced the configuration


def test_changed_data_is_refused(tmp_path):
    start(tmp_path)
    with pytest.raises(RunError, match="miniature has changed since"):
        open_folder(tmp_path, digest="other")


def test_a_start_that_came_to_nothing_does_not_bind(tmp_path):
    open_folder(tmp_path, model="a/wrong/name").close()
    open_folder(tmp_path, digest="other").close()


def test_a_damaged_configuration_is_said(tmp_path):
    start(tmp_path)
    for content in ("{broken", "just text", "config: {nonsense: 1}", ""):
        (tmp_path / "config.yaml").write_text(content)
        with pytest.raises(RunError, match=r"config\.yaml: cannot be read"):
            open_folder(tmp_path)


def test_a_damaged_summary_is_said(tmp_path):
    folder = open_folder(tmp_path)
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(RunError, match=r"summary\.json: cannot be read.*Delete it"):
        folder.summary()


def test_two_processes_cannot_train_in_one_folder(tmp_path):
    folder = open_folder(tmp_path)
    program = (
        "from luffy import load_config; from luffy.training import RunFolder; "
        f"RunFolder(load_config(overrides={{'output': {str(tmp_path)!r}}}), digest='d')"
    )
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "another process is training in this run folder" in other.stderr
    folder.close()
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_a_file_in_the_place_of_the_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        open_folder(tmp_path / "file")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(RunError, match="cannot be written"):
        open_folder(tmp_path / "run")


# -- files


def test_what_belongs_to_later_steps_is_cut(tmp_path):
    folder = open_folder(tmp_path)
    for step in (1, 2, 3):
        folder.append_metrics(step, {})
        folder.append_evaluation({"step": step, "set": "a"})
        folder.write_rollouts(step, [{}])
        folder.write_generations(step, "a/b", [{}])
    with folder.metrics_file.open("a") as file:
        file.write('{"step": 4')
    folder.cut_after(2)
    assert [line["step"] for line in read_lines(folder.metrics_file)] == [1, 2]
    assert [line["step"] for line in read_lines(folder.evaluations_file)] == [1, 2]
    assert sorted(path.name for path in tmp_path.glob("rollouts/*")) == ["step-000001.jsonl", "step-000002.jsonl"]
    assert sorted(path.name for path in tmp_path.glob("evaluations/*")) == ["step-000001", "step-000002"]
    assert (tmp_path / "evaluations/step-000001/a-b.jsonl").exists()


def test_an_evaluation_made_again_replaces_the_first(tmp_path):
    folder = open_folder(tmp_path)
    for value in (1, 2):
        folder.append_evaluation({"step": 0, "set": "a", "value": value})
        folder.append_evaluation({"step": 0, "set": "b", "value": value})
    assert [(line["set"], line["value"]) for line in read_lines(folder.evaluations_file)] == [("a", 2), ("b", 2)]


# -- checkpoints


@pytest.fixture
def trained():
    """A model and its learner after a supervised step, so that AdamW has moments."""
    loaded = LoadedModel(build_model(dtype=torch.float32), NoTokenizer(), (2,), 0)
    learner = Learner(loaded, load_config(overrides={"method": "sft"}))
    learner.start_phase("sft", 0, 10)
    learner.imitate([Rollout([1, 2], [3, 4, 2], [0.0] * 3, True, True, 1.0, "")], 0)
    return loaded, learner


def save(path, trained, step, keep=2):
    save_checkpoint(path, *trained, Progress(step=step, tokens_trained=10 * step), keep)


def test_a_checkpoint_holds_everything(tmp_path, trained):
    loaded, learner = trained
    save(tmp_path, trained, 3)
    checkpoint = find_checkpoint(tmp_path)
    assert read_progress(checkpoint) == Progress(step=3, tokens_trained=30)
    other = LoadedModel(build_model(dtype=torch.float32, seed=9), None, (2,), 0)
    again = Learner(other, learner.config)
    load_weights(checkpoint, other)
    again.start_phase("sft", 0, 10)
    load_optimizer(checkpoint, again)
    for one, two in zip(loaded.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(one, two)
        state, restored = learner.optimizer.state[one], again.optimizer.state[two]
        assert set(state) == set(restored)
        assert all(torch.equal(state[name], restored[name]) for name in state)


def test_only_the_newest_are_kept(tmp_path, trained):
    for step in (1, 2, 3, 4):
        save(tmp_path, trained, step)
    assert [path.name for path in sorted(tmp_path.glob("checkpoints/*"))] == ["step-000003", "step-000004"]


def test_steps_beyond_six_digits_are_the_newest(tmp_path, trained):
    for step in (999_999, 1_000_000):
        save(tmp_path, trained, step)
    assert read_progress(find_checkpoint(tmp_path)).step == 1_000_000


def test_a_half_written_checkpoint_is_not_used(tmp_path, trained):
    save(tmp_path, trained, 1)
    whole = find_checkpoint(tmp_path)
    (tmp_path / "checkpoints/step-000002").mkdir()  # without state.json
    part = tmp_path / "checkpoints/step-000003.part"
    part.mkdir()
    (part / "state.json").write_text(json.dumps({"step": 3}))
    assert list_checkpoints(tmp_path) == [whole]


def test_a_full_disk_keeps_the_previous_checkpoint(tmp_path, trained, monkeypatch):
    save(tmp_path, trained, 1, keep=1)
    before = find_checkpoint(tmp_path)
    monkeypatch.setattr("luffy.training.checkpoint.save_file", no_space)
    with pytest.raises(RunError, match=r"step-000002: cannot be written \(No space left on device\)"):
        save(tmp_path, trained, 2, keep=1)
    assert [*tmp_path.glob("checkpoints/*")] == [before]
    assert read_progress(before).step == 1


@pytest.mark.parametrize("damage", ["state.json", "model/model.safetensors", "optimizer.safetensors", "ahead.json"])
def test_a_damaged_checkpoint_is_named(tmp_path, trained, damage):
    loaded, learner = trained
    save(tmp_path, trained, 1)
    checkpoint = find_checkpoint(tmp_path)
    (checkpoint / damage).write_bytes(b"{broken")
    read = {
        "state.json": lambda: read_progress(checkpoint),
        "model/model.safetensors": lambda: load_weights(checkpoint, loaded),
        "optimizer.safetensors": lambda: load_optimizer(checkpoint, learner),
        "ahead.json": lambda: read_ahead(checkpoint),
    }
    with pytest.raises(RunError, match=r"step-000001: cannot be read .*Delete it to use the one before"):
        read[damage]()
