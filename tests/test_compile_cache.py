"""Commands keep what is compiled: a second start finds it, and what the user says comes first."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import jax, sys
from sam_jax.commands.compile_cache import use_compilation_cache
use_compilation_cache()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name))
jax.jit(lambda x: x * 3 + 1)(2.0)
print(jax.config.jax_compilation_cache_dir, "/jax/compilation_cache/cache_hits" in hits)
"""


def start(**environment):
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_COMP", "SAM_JAX_COMP"))}
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, env=inherited | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.rsplit(maxsplit=1)


def test_a_second_start_compiles_nothing_again(tmp_path):
    first, second = (start(SAM_JAX_CACHE=str(tmp_path)) for _ in range(2))
    assert first[0].startswith(str(tmp_path / "compiled"))
    assert (first[1], second[1]) == ("False", "True")


@pytest.mark.parametrize("switched_off", [False, True])
def test_what_the_user_says_comes_first(tmp_path, switched_off):
    chosen = (
        {"SAM_JAX_COMPILATION_CACHE": "off"} if switched_off else {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "mine")}
    )
    assert start(SAM_JAX_CACHE=str(tmp_path), **chosen)[0] == ("None" if switched_off else str(tmp_path / "mine"))
    assert not (tmp_path / "compiled").exists()
