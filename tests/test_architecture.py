"""Checks who may import whom, and other rules for the whole package."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import sam_jax

ROOT = Path(sam_jax.__file__).parent
BASE = {"bounds", "config", "errors", "types", "files", "progress"}
MODELS = {"modeling", "clip", "ritm", "detection"}
ALLOWED = {  # besides itself; what is not listed may import anything of the package
    "errors.py": set(),
    "types.py": set(),
    "bounds.py": {"errors"},
    "config.py": {"bounds", "errors"},
    "files.py": {"errors"},
    "progress.py": set(),
    "config_file.py": {"errors", "files"},
    "modeling": BASE,
    "ops": BASE,
    "prompting": BASE | {"ops", "clip"},
    "data": BASE | {"ops"},
    "parallel": BASE,
    "clip": BASE | {"modeling", "ops"},
    "ritm": BASE | {"modeling", "ops", "prompting"},
    "detection": BASE | {"modeling", "ops", "data"},
    "checkpoints": BASE | {"model"} | MODELS,
    "model.py": BASE | {"modeling"},
    "embedding_files.py": BASE | {"model"},
    "predictor.py": BASE | {"modeling", "ops", "prompting", "model", "clip", "embedding_files"},
    "compat.py": BASE | {"ops", "prompting", "model", "predictor", "everything", "checkpoints"},
    "everything": BASE
    | {"modeling", "ops", "prompting", "data", "parallel", "clip", "model", "predictor", "checkpoints"},
    "training": BASE | {"ops", "prompting", "data", "parallel", "checkpoints", "model", "predictor"} | MODELS,
    "evals": BASE
    | {"ops", "prompting", "data", "parallel", "model", "predictor", "everything", "checkpoints", "web"}
    | MODELS,
    "export": BASE | {"modeling"},
    "web": {"errors"},
    "engine": BASE
    | {"ops", "prompting", "data", "checkpoints", "model", "predictor", "parallel", "everything", "evals"}
    | {"detection", "training", "config_file"},
    "engine/automatic": BASE | {"ops", "data", "parallel", "checkpoints", "everything"},
    "engine/store.py": BASE | {"ops"},
    "engine/statements.py": BASE | {"ops"},
    "engine/schema.py": BASE,
    "engine/records.py": BASE | {"ops"},
    "app": BASE | {"web", "ops", "prompting", "data", "engine", "everything", "model", "predictor"},
}


def imported_parts(path: Path) -> set[str]:
    """Returns the parts of sam_jax that a file imports anywhere."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module] if node.module != "sam_jax" else [f"sam_jax.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    return {name.split(".")[1] for name in names if name.startswith("sam_jax.")}


@pytest.mark.parametrize("part", ALLOWED)
def test_imports_point_one_way(part):
    files = [ROOT / part] if part.endswith(".py") else list((ROOT / part).rglob("*.py"))
    assert files
    for path in files:
        assert imported_parts(path) <= ALLOWED[part] | {part.split("/")[0].removesuffix(".py")}, path


def test_class_names_are_unique_in_the_package():
    files: dict[str, list[str]] = {}
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                files.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    assert {name: places for name, places in files.items() if len(places) > 1} == {}


ON_PATHS = {"read_text", "read_bytes", "write_text", "write_bytes", "rmtree", "copyfile"}
OPENED_ELSEWHERE = {"web", "assets"}


def opens_a_file(node: ast.AST) -> bool:
    """Returns whether this is `path.read_text()` or the like, `path.open("w")` or `open(path)`, not `tarfile.open`."""
    if not isinstance(node, ast.Call):
        return False
    if isinstance(node.func, ast.Attribute):
        mode = node.args[0] if node.args else None
        opened = node.func.attr == "open" and isinstance(mode, ast.Constant)
        return opened or node.func.attr in ON_PATHS
    return isinstance(node.func, ast.Name) and node.func.id == "open"


def test_files_are_opened_in_one_place():
    for path in ROOT.rglob("*.py"):
        if path == ROOT / "files.py" or path.relative_to(ROOT).parts[0] in OPENED_ELSEWHERE:
            continue
        places = [node for node in ast.walk(ast.parse(path.read_text())) if opens_a_file(node)]
        assert not places, [f"{path}:{node.lineno}" for node in places]


def test_evaluations_serve_the_engine_to_measure_models_alone():
    using = {p.name for p in (ROOT / "engine").rglob("*.py") if "evals" in imported_parts(p)}
    assert using == {"promotion.py"}


def test_nothing_in_the_package_imports_scripts_or_configs():
    for path in set(ROOT.rglob("*.py")) - set(ROOT.glob("configs/*")):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [node.module] if isinstance(node, ast.ImportFrom) else []
            modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names = {(module or "").removeprefix("sam_jax.").split(".")[0] for module in modules}
            assert not {"train", "eval", "configs"} & names, path


def test_inference_needs_neither_torch_nor_the_training_code():
    code = (
        "import sys, sam_jax, sam_jax.predictor, sam_jax.commands.main, sam_jax.checkpoints.hub\n"
        "import sam_jax.detection.run\n"
        "heavy = ('torch', 'transformers', 'tensorflow_datasets', 'grain', 'array_record', 'apache_beam')\n"
        "bad = [m for m in sys.modules if m.split('.')[0] in heavy or m == 'sam_jax.training']\n"
        "sys.exit(str(bad) if bad else 0)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_no_test_module_imports_another():
    """Checks that what test modules share is in `cases`."""
    for path in Path(__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not [m for m in modules if m.split(".")[-1].startswith("test_") or m.startswith("tests")], path
