"""Files written whole or not at all, and lines of JSON."""

import errno
import os
from pathlib import Path

import pytest
from safetensors import SafetensorError

from luffy import RunError
from luffy.files import append_line, read_lines, write_folder_whole, write_lines, write_whole


def no_space(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_line_being_written_is_left_out_and_a_broken_one_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert [line["step"] for line in read_lines(path)] == [1, 2]
    path.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(RunError, match=r"metrics\.jsonl, line 2: not valid JSON"):
        read_lines(path)
    path.write_text("[1]\n")
    with pytest.raises(RunError, match="line 1: expected a JSON object, got list"):
        read_lines(path)
    path.write_bytes(b"\xff\xfe\n")
    with pytest.raises(RunError, match="UTF-8"):
        read_lines(path)


def test_lines_nested_too_deeply(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n' + "[" * 100_000 + "\n")
    with pytest.raises(RunError, match="line 2: not valid JSON"):
        read_lines(path)
    path.write_text('{"step": 1}\n' + "[" * 100_000)
    assert read_lines(path) == [{"step": 1}], "the last line may still be written"


def test_a_line_cut_off_by_a_kill_is_left_out(tmp_path):
    path = tmp_path / "lines.jsonl"
    write_lines(path, [{"step": 1, "text": "a\u2028b"}, {"step": 2}])
    with path.open("a") as file:
        file.write('{"step": 3, "lo')
    assert read_lines(path) == [{"step": 1, "text": "a\u2028b"}, {"step": 2}]


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "file.json"
    write_whole(path, "old")
    monkeypatch.setattr("luffy.files.os.fsync", no_space)
    with pytest.raises(RunError, match=r"file\.json: cannot be written \(No space left on device\)"):
        write_whole(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_system_that_flushes_no_folders_will_do(tmp_path, monkeypatch):
    sync = os.fsync

    def no_folders(handle):
        if os.path.isdir(f"/proc/self/fd/{handle}"):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        sync(handle)

    monkeypatch.setattr("luffy.files.os.fsync", no_folders)
    write_folder_whole(tmp_path / "folder", lambda folder: (folder / "file").write_text("new"))
    assert (tmp_path / "folder/file").read_text() == "new"
    monkeypatch.setattr("luffy.files.os.fsync", no_space)
    with pytest.raises(RunError, match="No space"):
        write_folder_whole(tmp_path / "other", lambda folder: (folder / "file").write_text("new"))


def test_a_line_that_cannot_be_written_is_said():
    with pytest.raises(RunError, match=r"/dev/full: cannot be written \(No space left on device\)"):
        append_line(Path("/dev/full"), {"a": 1})


@pytest.mark.parametrize("error", [OSError(errno.EIO, "I/O error"), SafetensorError("I/O error: No space left")])
def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path, error):
    path = tmp_path / "folder"
    write_folder_whole(path, lambda folder: (folder / "file").write_text("old"))

    def fill(folder):
        (folder / "file").write_text("new")
        raise error

    with pytest.raises(RunError, match="folder: cannot be written"):
        write_folder_whole(path, fill)
    assert (path / "file").read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    write_folder_whole(path, lambda folder: (folder / "other").write_text("new"))
    assert [file.name for file in path.iterdir()] == ["other"]


def test_a_bug_of_ours_keeps_its_own_error(tmp_path):
    with pytest.raises(ZeroDivisionError):
        write_folder_whole(tmp_path / "folder", lambda folder: 1 / 0)
    assert list(tmp_path.iterdir()) == []


def test_half_a_surrogate_pair_is_written_and_read_as_it_was(tmp_path):
    lines = [{"text": "a\ud800b", "other": "\u2028é"}]
    write_lines(tmp_path / "lines.jsonl", lines)
    assert read_lines(tmp_path / "lines.jsonl") == lines
