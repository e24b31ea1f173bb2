"""What is written is whole or not there."""

import threading

import pytest

from sam_jax.files import remove, replacing, write_atomically


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def write_half(path, error):
    with replacing(path) as temporary:
        temporary.write_text("half")
        raise error


def test_a_file_or_folder_appears_when_it_is_whole(tmp_path):
    with replacing(tmp_path / "a.json") as temporary:
        temporary.write_text("new")
        assert not (tmp_path / "a.json").exists()
    with replacing(tmp_path / "folder") as temporary:
        temporary.mkdir()
        (temporary / "b").write_text("b")
    write_atomically(tmp_path / "a.json", "ä")
    assert (tmp_path / "a.json").read_bytes() == "ä".encode()
    assert (tmp_path / "folder" / "b").read_text() == "b"
    assert names(tmp_path) == ["a.json", "folder"]


def test_what_fails_leaves_what_was_there_and_nothing_else(tmp_path):
    write_atomically(tmp_path / "a", b"old")
    for error in (OSError, KeyboardInterrupt):
        with pytest.raises(error):
            write_half(tmp_path / "a", error)
    assert (tmp_path / "a").read_text() == "old"
    assert names(tmp_path) == ["a"]
    remove(tmp_path / "a")
    remove(tmp_path / "a")
    assert names(tmp_path) == []


def test_threads_that_write_one_file_do_not_mix(tmp_path):
    contents = [bytes([i]) * 200_000 for i in range(8)]
    threads = [threading.Thread(target=write_atomically, args=(tmp_path / "a", content)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "a").read_bytes() in contents
    assert names(tmp_path) == ["a"]
