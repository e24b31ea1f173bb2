"""Zip archives of PyTorch are bounded by their file: a small one cannot ask for memory without end."""

import io
import zipfile

import numpy as np
import pytest
import torch

from sam_jax.checkpoints import load_checkpoint
from sam_jax.checkpoints.published import read_published
from sam_jax.errors import UserError


def script_of(tensor) -> bytes:
    """Returns a TorchScript archive with one tensor."""
    module = torch.nn.Module()
    module.weight = torch.nn.Parameter(tensor, requires_grad=False)
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(module), buffer)
    return buffer.getvalue()


def state_of(tensor) -> bytes:
    buffer = io.BytesIO()
    torch.save({"weight": tensor}, buffer)
    return buffer.getvalue()


def compress(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return buffer.getvalue()


@pytest.mark.parametrize("save", [script_of, state_of])
def test_a_compressed_archive_is_refused_before_it_is_inflated(tmp_path, save, monkeypatch):
    path = tmp_path / "bomb.pt"
    path.write_bytes(compress(save(torch.zeros(500_000))))
    assert path.stat().st_size < 20_000
    monkeypatch.setattr(torch, "load", None)
    monkeypatch.setattr(zipfile.ZipFile, "read", None)
    with pytest.raises(UserError, match=r"bomb\.pt is a compressed zip archive: 20\d{5} bytes in \d{4,5};"):
        load_checkpoint(path)


@pytest.mark.parametrize("save", [script_of, state_of])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_numbers_that_repeat_without_end_are_refused(tmp_path, save, dtype):
    path = tmp_path / "few.pt"
    path.write_bytes(save(torch.ones(1, dtype=dtype).expand(10**12)))
    with pytest.raises(UserError, match=r"few\.pt"):
        read_published(path)


def test_tensors_that_share_their_numbers_are_read(tmp_path):
    module, numbers = torch.nn.Module(), torch.arange(12.0)
    module.first, module.second = (torch.nn.Parameter(numbers[i : i + 6].view(2, 3)) for i in (0, 6))
    torch.jit.save(torch.jit.script(module), tmp_path / "shared.pt")
    tensors = read_published(tmp_path / "shared.pt").state
    np.testing.assert_array_equal(np.stack([tensors["first"], tensors["second"]]).ravel(), np.arange(12))
