"""Sets up eight virtual CPU devices for sharding, quick compilations that all processes share, and a browser."""

import os
import shutil
import tempfile
from importlib.metadata import version

# All in the environment, so that pytest-xdist's processes and those that tests start have it as well.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["JAX_NUM_CPU_DEVICES"] = "8"
# Most of the time is compilation: half as much of it without LLVM's optimisations, of which XLA's own are independent,
# and again half with the older of two emitters of fused loops, which later versions no longer have.
_flags = [os.environ.get("XLA_FLAGS", ""), "--xla_backend_optimization_level=0"]
_flags += ["--xla_cpu_use_fusion_emitters=false"] * version("jaxlib").startswith("0.10.")
os.environ["XLA_FLAGS"] = " ".join(_flags)
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _cache = tempfile.TemporaryDirectory(prefix="sam_jax_tests_")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"

import hypothesis
import jaxtyping
import pytest

# Annotations of the array core are checked at every call: dtypes and shapes by jaxtyping, the rest by beartype, for
# which an int is a float. Left out are the modules that answer bad input themselves.
CHECKED = [
    "sam_jax.modeling",
    "sam_jax.clip.crops",
    "sam_jax.clip.network",
    "sam_jax.detection.boxes",
    "sam_jax.detection.detector",
    "sam_jax.detection.heads",
    "sam_jax.detection.nms",
    "sam_jax.detection.roi_align",
    "sam_jax.ops",
    "sam_jax.prompting.simulate",
    "sam_jax.prompting.text",
    "sam_jax.ritm.hrnet",
    "sam_jax.ritm.network",
    "sam_jax.ritm.ocr",
    "sam_jax.ritm.sampling",
    "sam_jax.training.contrastive",
    "sam_jax.training.detector.losses",
    "sam_jax.training.detector.step",
    "sam_jax.training.detector.targets",
    "sam_jax.training.losses",
    "sam_jax.training.optimizer",
    "sam_jax.training.step",
    "sam_jax.training.trainable",
]
jaxtyping.install_import_hook(CHECKED, "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

import sam_jax

hypothesis.settings.register_profile("sam_jax", deadline=None)  # a busy machine is no error
hypothesis.settings.load_profile("sam_jax")

CHROMIUM = os.environ.get("CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
# --no-sandbox: it can't be used by root, which containers of CI are. The rest keeps it from calling home.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
]


@pytest.fixture(scope="module")
def browser():
    """Chromium, where there is one."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    if CHROMIUM is None:
        pytest.skip("needs Chromium: apt install chromium, or name it in CHROMIUM")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def tiny_model():
    """A trained model: one compilation for all tests that a process runs with it."""
    from cases.models import TRAINED

    return sam_jax.load_model(TRAINED)


@pytest.fixture
def run_config(tmp_path, monkeypatch):
    """A training run of four steps on the examples of a folder, validated at its end."""
    from cases.training import make_config, write_examples
    from sam_jax.config import DataConfig, ParallelConfig, PromptConfig
    from sam_jax.data import training_sets

    (tmp_path / "data").mkdir()
    examples = write_examples(tmp_path / "data")
    monkeypatch.setitem(training_sets.TRAINING_SETS, "synthetic", lambda root: examples)
    data = DataConfig(
        tmp_path / "data",
        format="named",
        datasets=("synthetic",),
        batch_size=2,
        masks_per_image=2,
        scale_range=(0.8, 1.5),
    )
    return make_config(
        out=tmp_path / "run",
        data=data,
        prompts=PromptConfig(point_rounds=1, refine_rounds=1),
        steps=4,
        validate_every=4,
        validation_batches=1,
        save_every=2,
        log_every=1,
        parallel=ParallelConfig("mesh", 1, 1),
    )
