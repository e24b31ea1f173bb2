"""Eight virtual CPU devices for the tests of sharding, and a compilation cache, since many tests compile the same."""

import os
import tempfile

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax

_cache = tempfile.TemporaryDirectory(prefix="sam_jax_tests_")
jax.config.update("jax_compilation_cache_dir", _cache.name)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
