"""What is written is whole or not there."""

import errno
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest

from sam_jax import files
from sam_jax.errors import UserError
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


FULL = "No space left on device"
ERRORS = {  # what libraries raise on a full disk, and whether that is seen without a look at the disk
    "system": (OSError(errno.ENOSPC, FULL), True),
    "quota": (OSError(errno.EDQUOT, "Disk quota exceeded"), True),
    "limit": (OSError(errno.EFBIG, "File too large"), True),
    "safetensors": (RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"), True),
    "tensorstore": (ValueError("RESOURCE_EXHAUSTED: Failed writing: [OS error 28: No space left on device]"), True),
    "beam": (RuntimeError("Traceback (most recent call last): ... OSError: [Errno 28] No space left on device"), True),
    "numpy": (OSError("32768 requested and 12224 written"), False),
    "torch": (RuntimeError("[enforce fail at inline_container.cc:659] . unexpected pos 64 vs 0"), False),
}


def fail(path, error):
    with replacing(path):
        raise error


@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.parametrize("full", [True, False])
def test_a_full_disk_is_the_systems_error_with_the_files_name(tmp_path, monkeypatch, name, full):
    error, seen = ERRORS[name]
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: SimpleNamespace(free=0 if full else 2**30))
    with pytest.raises(type(error) if not (full or seen) else OSError) as found:
        fail(tmp_path / "a.bin", error)
    if full or seen:
        assert found.value.errno in files.FULL_DISK
        assert found.value.filename == str(tmp_path / "a.bin")
        assert found.value.__cause__ is error
    else:
        assert found.value is error
    assert names(tmp_path) == []


def test_a_users_mistake_on_a_full_disk_stays_one(tmp_path, monkeypatch):
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    with pytest.raises(UserError, match="wrong"):
        fail(tmp_path / "a", UserError("wrong"))
    with pytest.raises(FileNotFoundError):
        (tmp_path / "none").read_text()


def run_limited(size, code):
    """Runs a program in a process whose files may not grow beyond a size; returns what it prints."""
    limit = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))\n"
    )
    return subprocess.run([sys.executable, "-c", limit + code], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    "write",
    [
        "write_atomically(path, b'x' * 10000)",
        "append_line(path, 'x' * 10000)",
        "\n    with replacing(path) as t: save_file({'a': np.zeros(10000)}, t)",
        "write_pytorch(path, {'a': np.zeros(10000)}, '')",
    ],
)
def test_what_libraries_write_beyond_a_limit_is_one_error_with_a_name(tmp_path, write):
    code = f"""
import pathlib, numpy as np
from safetensors.numpy import save_file
from sam_jax.checkpoints.published import write_pytorch
from sam_jax.files import append_line, replacing, write_atomically
path = pathlib.Path({str(tmp_path / "a.bin")!r})
try: {write}
except OSError as error: print(error.errno, error.filename)
"""
    assert run_limited(4096, code) == f"{errno.EFBIG} {tmp_path / 'a.bin'}\n"
