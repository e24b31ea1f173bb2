"""`sam-jax train --compile-only`: what it refuses, and, where there is a TPU compiler, what it says."""

import importlib.util
import os
import re
import subprocess
import sys

import pytest

from sam_jax.commands import main as cli

CONFIG = """
from pathlib import Path
from sam_jax.config import DataConfig, LossConfig, ParallelConfig, PromptConfig, SamConfig, TrainConfig, ViTConfig

def get_config():
    return TrainConfig(
        out=Path("run"),
        model=SamConfig("least", ViTConfig(64, dim=64, depth=2, heads=2, global_attention_blocks=(1,), window_size=2)),
        data=DataConfig(batch_size=8, masks_per_image=2),
        prompts=PromptConfig(point_rounds=1, refine_rounds=0),
        loss=LossConfig(size=64),
        parallel=ParallelConfig(fsdp=2),
    )
"""


@pytest.fixture
def config(tmp_path):
    (tmp_path / "least.py").write_text(CONFIG)
    return str(tmp_path / "least.py")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--compile-only"], "expected a topology after --compile-only, such as v5e:16x16"),
        (["--compile-only", "h100:8"], "expected a topology of v4, v5e, v5p"),
        (["--compile-only", "v5e:2x2", "--finetune.cache-embeddings"], "leave text.clip and caches"),
    ],
)
def test_what_cannot_be_compiled_ahead_is_told(config, capsys, arguments, message):
    assert cli.main(["train", config, *arguments]) == 2
    assert message in capsys.readouterr().err


def test_other_configs_are_refused(capsys):
    assert cli.main(["train", "detector_small", "--compile-only", "v5e:2x2"]) == 2
    assert "is for configs of Segment Anything, got a DetectorTrainConfig" in capsys.readouterr().err


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is installed")
def test_without_the_compiler_it_says_what_to_install(config, capsys):
    assert cli.main(["train", config, "--compile-only", "v5e:2x2"]) == 2
    assert "the TPU compiler is missing; pip install 'sam_jax[tpu]'" in capsys.readouterr().err


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 0, r"v5e:2x2, 4 chips, 8 images a step, fsdp 2: fits\. A chip holds 0\.\d+ GiB"),
        (["--data.batch-size", "6"], 2, r"to divide the 4 chips, and these the batch of 6 images"),
        (
            ["--data.batch-size", "4000", "--loss.size", "1024"],
            2,
            r"the step does not fit into the 16 GiB of a chip of v5e:2x2",
        ),
    ],
)
def test_the_compiler_says_what_a_chip_holds(config, arguments, code, said):
    command = [sys.executable, "-m", "sam_jax", "train", config, "--compile-only", "v5e:2x2", *arguments]
    environment = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)  # the compiler stays in its process
    assert done.returncode == code, done.stderr
    assert re.search(said, done.stdout + done.stderr)
