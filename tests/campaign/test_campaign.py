"""The campaign as tests: each command is broken and goes on, each kind of input gets an answer. Hours; `make campaign`.

SCALE in the environment is the part of it that is run: 1 is all.
"""

import contextlib
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from campaign.commands import COMMANDS
from campaign.inputs import KINDS
from sam_jax.errors import EXPECTED_ERRORS

TESTS = Path(__file__).parents[1]
SCALE = float(os.environ.get("SCALE", "1"))
QUICK = ("images", "rles", "coco", "tars")


def run(module: str, *arguments: str) -> None:
    path = os.pathsep.join([str(TESTS.parent), str(TESTS), os.environ.get("PYTHONPATH", "")])
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    command = [sys.executable, "-m", f"campaign.{module}", *arguments]
    done = subprocess.run(command, env=environment | {"PYTHONPATH": path}, stdout=subprocess.PIPE, text=True)
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-4000:]


@pytest.mark.campaign
@pytest.mark.parametrize("kind", KINDS)
def test_damaged_input_gets_an_answer(kind):
    run("fuzz", kind, "--scale", str(SCALE))


@pytest.mark.campaign
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_breaks_goes_on_to_the_same_result(command):
    run("faults", command, "--random", str(round(200 * SCALE)), "--most", str(max(2, round(1000 * SCALE))))


@pytest.mark.parametrize("name", QUICK)
def test_a_few_damaged_inputs_get_an_answer(name, tmp_path):
    kind = KINDS[name]
    kind.prepare(tmp_path)
    for number in range(40):
        with contextlib.suppress(*EXPECTED_ERRORS):
            kind.run(random.Random(f"{name} {number}"), tmp_path)
