"""Keeps what JAX compiles in the user's cache folder, so that a command's second start compiles nothing again."""

from __future__ import annotations

import hashlib
import os
import platform
from pathlib import Path

import jax

from sam_jax.checkpoints.hub import default_cache_dir
from sam_jax.files import read_text

SWITCH = "SAM_JAX_COMPILATION_CACHE"  # environment variable; "off": nothing is kept
MOST_BYTES = 2 * 2**30  # beyond, what was not used for the longest time goes


def use_compilation_cache() -> None:
    """Turns JAX's persistent cache of compiled programs on, unless JAX was told where it is, or it is switched off."""
    if os.environ.get(SWITCH, "").lower() == "off" or jax.config.jax_compilation_cache_dir is not None:  # type: ignore[attr-defined]
        return
    jax.config.update("jax_compilation_cache_dir", str(default_cache_dir() / "compiled" / processor()))
    jax.config.update("jax_compilation_cache_max_size", MOST_BYTES)


def processor() -> str:
    """Returns a name of this kind of processor: programs for one need not run on another, and homes are shared."""
    text = platform.machine() + platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():  # Linux: the model, and what it can do
        lines = read_text(cpuinfo).splitlines()
        text += "".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
    return hashlib.sha256(text.encode()).hexdigest()[:12]
