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
    Retention,
    WholeState,
    find_checkpoint,
    find_damage,
    list_checkpoints,
    load_optimizer,
    load_weights,
    read_ahead,
    read_progress,
    save_checkpoint,
    save_in_parts,
    take_up_checkpoint,
)
from luffy.training.learner import Learner
from luffy.training.parts import write_parts
from luffy.training.world import ALONE
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
    assert f"another process ({os.getpid()}) is training in this run folder" in other.stderr
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


def test_a_forked_worker_does_not_hold_the_folder(tmp_path):
    """A verifier that lives on when its run was killed must not be in the way of the next start."""
    program = (
        "import os, sys, time; from luffy import load_config; from luffy.training import RunFolder\n"
        f"folder = RunFolder(load_config(overrides={{'output': {str(tmp_path)!r}}}), digest='d')\n"
        "worker = os.fork()\n"
        "if not worker: os.close(1); time.sleep(60)\n"
        "print(worker, flush=True); os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, check=False)
    try:
        assert killed.returncode == -9
        open_folder(tmp_path).close()
    finally:
        os.kill(int(killed.stdout), 9)


def test_the_process_that_holds_the_folder_is_named(tmp_path):
    folder = open_folder(tmp_path)
    with pytest.raises(RunError, match=rf"another process \({os.getpid()}\) is training.*choose another output="):
        open_folder(tmp_path)
    folder.close()


def test_what_keeps_a_run_from_being_exact_is_known_when_it_goes_on(tmp_path, monkeypatch):
    start(tmp_path)
    folder = open_folder(tmp_path)
    assert folder.differences == []
    folder.close()
    from luffy.training import run_folder

    versions, hardware = run_folder.library_versions(), run_folder.hardware()
    monkeypatch.setattr(run_folder, "library_versions", lambda: versions | {"torch": "1.0"})
    monkeypatch.setattr(run_folder, "hardware", lambda: hardware | {"threads": 64, "gpu": "H100", "cores": 128})
    for _ in range(2):  # what it began with is not forgotten
        folder = open_folder(tmp_path)
        assert folder.differences == [
            f"torch {versions['torch']} there, 1.0 here",
            f"threads {hardware['threads']} there, 64 here",
            "gpu None there, H100 here",
        ]
        folder.close()


def test_another_number_of_processes_is_known(tmp_path):
    start(tmp_path)
    folder = RunFolder(load_config(overrides={"output": str(tmp_path)}), digest="d", processes=2)
    assert folder.differences == ["processes 1 there, 2 here"]
    folder.close()


def test_a_schedule_over_another_number_of_steps_is_known(tmp_path):
    cosine = {"optimizer.schedule": "cosine"}
    start(tmp_path / "cosine", **cosine)
    folder = open_folder(tmp_path / "cosine", steps=7, **cosine)
    assert folder.differences == ["the cosine schedule is over 100 steps there, 7 here"]
    start(tmp_path / "constant")
    assert open_folder(tmp_path / "constant", steps=7).differences == []


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
    for name in ("metrics.jsonl.part", "checkpoints/step-000003.part/state.json", "model.before/config.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{")
    folder.cut_after(2)
    assert not [*tmp_path.rglob("*.part"), *tmp_path.rglob("*.before")]
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


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def save(path, trained, step, keep=2, best=0, scores=()):
    loaded, learner = trained
    progress = Progress(step=step, tokens_trained=10 * step)
    save_checkpoint(path, loaded, WholeState.of(learner), progress, Retention(keep, best, dict(scores)))


def assert_restores(checkpoint, trained):
    """Another model takes up the weights and moments of the checkpoint; it and its learner are returned."""
    loaded, learner = trained
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
    return other, again


def test_a_checkpoint_holds_everything(tmp_path, trained):
    save(tmp_path, trained, 3)
    checkpoint = find_checkpoint(tmp_path)
    assert read_progress(checkpoint) == Progress(step=3, tokens_trained=30)
    assert_restores(checkpoint, trained)


@pytest.mark.filterwarnings("ignore:torch.distributed is")  # processes of their own: test_process_failures.py
def test_a_checkpoint_in_parts_holds_everything_and_its_damage_is_named(tmp_path, trained, monkeypatch):
    monkeypatch.setattr("luffy.training.parts.FILE_BYTES", 20_000)
    _, learner = trained
    save_in_parts(tmp_path, learner, Progress(step=3), Retention(2), {"a": 1})
    checkpoint = find_checkpoint(tmp_path)
    assert {path.suffix for path in (checkpoint / "parts").iterdir()} == {".safetensors"}
    assert (read_progress(checkpoint).step, read_ahead(checkpoint), find_damage(checkpoint)) == (3, {"a": 1}, None)
    other, again = assert_restores(checkpoint, trained)
    part, *others = (checkpoint / "parts").iterdir()
    assert others
    flip_a_bit(part)
    assert find_damage(checkpoint) == f"parts/{part.name} is not as it was written"
    part.write_bytes(b"broken")
    for read in (lambda: load_weights(checkpoint, other), lambda: load_optimizer(checkpoint, again)):
        with pytest.raises(RunError, match=r"step-000003: cannot be read .*Delete it to use the one before"):
            read()


def test_a_process_that_does_not_see_the_folder_is_told_why(tmp_path):
    with pytest.raises(RunError, match="a file system that all machines share"):
        write_parts(tmp_path / "elsewhere", {}, ALONE)


@pytest.mark.filterwarnings("ignore:torch.distributed is")
def test_a_model_of_another_shape_is_not_filled_in_part(tmp_path, trained):
    _, learner = trained
    save_in_parts(tmp_path, learner, Progress(step=1), Retention(2))
    other = LoadedModel(build_model("qwen", dtype=torch.float32), None, (2,), 0)
    with pytest.raises(RunError, match="step-000001: cannot be read"):
        load_weights(find_checkpoint(tmp_path), other)


def test_a_weight_of_another_shape_is_refused(tmp_path, trained):
    save(tmp_path, trained, 1)
    other = LoadedModel(build_model(dtype=torch.float32, seed=9), None, (2,), 0)
    norm = other.model.model.norm
    norm.weight = torch.nn.Parameter(torch.ones(2, *norm.weight.shape))  # copying would fill both halves
    with pytest.raises(RunError, match=r"step-000001: cannot be read \(model.norm.weight is \[32\]"):
        load_weights(find_checkpoint(tmp_path), other)


def test_only_the_newest_are_kept(tmp_path, trained):
    for step in (1, 2, 3, 4):
        save(tmp_path, trained, step)
    assert [path.name for path in sorted(tmp_path.glob("checkpoints/*"))] == ["step-000003", "step-000004"]


def test_the_best_are_kept_beside_the_newest(tmp_path, trained):
    scores = {1: 0.5, 2: 0.9, 3: 0.9, 4: 0.1}
    for step in (1, 2, 3, 4, 5, 6):
        save(tmp_path, trained, step, 1, 2, scores)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-000002", "step-000003", "step-000006"]
    save(tmp_path, trained, 7, 1, 1, scores)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-000003", "step-000007"]


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path, trained, caplog):
    for step in (1, 2):
        save(tmp_path, trained, step)
    first, newest = list_checkpoints(tmp_path)
    assert take_up_checkpoint(tmp_path) == newest
    check = subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=newest, check=False)
    assert check.returncode == 0
    flip_a_bit(newest / "optimizer.safetensors")
    assert take_up_checkpoint(tmp_path) == first
    assert "step-000002 is damaged (optimizer.safetensors is not as it was written) and is not used" in caplog.text
    assert list_checkpoints(tmp_path) == [first]
    (first / "model/config.json").unlink()
    with pytest.raises(RunError, match=r"all 1 checkpoints are damaged.*begin anew"):
        take_up_checkpoint(tmp_path)
    assert "step-000001 is damaged (model/config.json cannot be read: No such file or directory)" in caplog.text
    assert take_up_checkpoint(tmp_path / "other") is None


@pytest.mark.parametrize("content", ["", "nonsense\n", "00  state.json\n", b"\xff\xfe"])
def test_damaged_digests_are_damage(tmp_path, trained, content):
    save(tmp_path, trained, 1)
    checkpoint = find_checkpoint(tmp_path)
    digests = checkpoint / "SHA256SUMS"
    digests.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert "SHA256SUMS" in find_damage(checkpoint)
    digests.unlink()
    assert find_damage(checkpoint) is None  # of an earlier version


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(tmp_path, trained, monkeypatch):
    flushed, sync, rename = set(), os.fsync, os.rename

    def noting(handle):
        flushed.add(os.readlink(f"/proc/self/fd/{handle}"))
        sync(handle)

    def checking(old, new):
        if str(old).endswith(".part"):
            written = {str(path) for path in [old, *old.rglob("*")]}
            assert written <= flushed
            assert len(written) > 5
            flushed.clear()
        rename(old, new)

    monkeypatch.setattr(os, "fsync", noting)
    monkeypatch.setattr(os, "rename", checking)
    save(tmp_path, trained, 1)
    assert flushed == {str(tmp_path / "checkpoints")}  # the new name, last


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
