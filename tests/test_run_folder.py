"""A run's folder: one process at a time, and its own config."""

import dataclasses
import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from cases.models import SMALL
from cases.training import make_config, write_examples
from sam_jax.config import FinetuneConfig
from sam_jax.errors import AlreadyExists, InUse, MissingPackage, UserError
from sam_jax.files import holding
from sam_jax.modeling import init_params
from sam_jax.training import embeddings
from sam_jax.training.run import RECORD, check_packages, claim_folder

OTHER = {  # what cannot change in a run, and how the message names it
    "finetune.trainable": {"finetune": FinetuneConfig(trainable="^mask_decoder/")},
    "finetune.lora-rank": {"finetune": FinetuneConfig(lora_rank=2)},
    "ema-decay": {"ema_decay": 0.9},
    "optimizer.clip-norm": {"optimizer": dataclasses.replace(make_config().optimizer, clip_norm=None)},
    "model.prompt-dim": {"model": dataclasses.replace(SMALL, prompt_dim=64)},
    "model.encoder.dim": {"model": dataclasses.replace(SMALL, encoder=dataclasses.replace(SMALL.encoder, dim=64))},
}


@pytest.mark.parametrize("name", OTHER)
def test_resume_refuses_by_name_what_the_checkpoints_do_not_fit_and_writes_nothing(tmp_path, name):
    config = make_config()
    claim_folder(tmp_path / "run", config, resume=False)
    before = (tmp_path / "run" / RECORD).read_bytes()
    other = dataclasses.replace(config, **OTHER[name], steps=7)
    with pytest.raises(UserError) as error:
        claim_folder(tmp_path / "run", other, resume=True)
    refused, _, taken = str(error.value).partition("Other fields that differ")
    assert f"do not fit another {name} " in refused
    assert "another --out" in refused
    assert "steps 7 (was " in taken
    assert (tmp_path / "run" / RECORD).read_bytes() == before


def test_resume_takes_other_changes_and_names_them(tmp_path, capsys):
    config = make_config()
    claim_folder(tmp_path, config, resume=False)
    claim_folder(tmp_path, config, resume=True)
    assert capsys.readouterr().out == ""
    optimizer = dataclasses.replace(config.optimizer, learning_rate=1e-5, clip_norm=2.0)
    claim_folder(tmp_path, dataclasses.replace(config, optimizer=optimizer), resume=True)
    told = capsys.readouterr().out
    assert "optimizer.learning-rate 1e-05 (was 0.002)" in told
    assert "optimizer.clip-norm 2.0 (was 1.0)" in told
    assert json.loads((tmp_path / RECORD).read_text())["optimizer"]["learning_rate"] == 1e-5


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"model": 3}', "null"])
def test_a_record_that_is_damaged_is_named(tmp_path, content):
    (tmp_path / RECORD).write_text(content)
    with pytest.raises(UserError, match=RECORD):
        claim_folder(tmp_path, make_config(), resume=True)
    with pytest.raises(AlreadyExists):
        claim_folder(tmp_path, make_config(), resume=False)
    assert (tmp_path / RECORD).read_text() == content


def test_a_second_process_is_told_who_has_the_folder_until_that_one_dies(tmp_path):
    program = (
        "import pathlib, sys, time; from sam_jax.files import holding\n"
        "with holding(pathlib.Path(sys.argv[1]), 'training'): print('held', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(InUse, match=rf"in use by process {other.pid} on .* since "), holding(tmp_path, "training"):
            pass
        with holding(tmp_path, "everything"):  # another thing
            pass
    finally:
        other.kill()
        other.wait()
    with holding(tmp_path, "training"), pytest.raises(InUse), holding(tmp_path, "training"):
        pass
    with holding(tmp_path, "training"):
        pass


def test_a_missing_package_is_named_before_anything_is_done():
    check_packages(["json"])
    with pytest.raises(MissingPackage, match=r"no_such_package too; pip install 'sam_jax\[train\]'"):
        check_packages(["json", "no_such_package"])


def test_what_is_encoded_is_kept_when_the_run_is_stopped(tmp_path, monkeypatch):
    params = init_params(SMALL, jax.random.key(0))
    examples = write_examples(tmp_path)
    encoded = []

    def embed(_, images):
        encoded.extend(images)
        return [np.zeros((4, 4, 32))]

    def stop():
        if len(encoded) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(embeddings, "embed", embed)
    config, folder = make_config(), tmp_path / "embeddings"
    with pytest.raises(KeyboardInterrupt):
        embeddings.cache_embeddings(examples, params, SMALL, config, folder, stop)
    kept = sorted(path.name for path in folder.iterdir())
    assert kept == ["0000000.npy", "0000001.npy"]
    embeddings.cache_embeddings(examples, params, SMALL, config, folder)
    assert len(encoded) == len(examples)
