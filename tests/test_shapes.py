"""Annotations of the array core say shapes, and tests check them at every call."""

import ast
from pathlib import Path

import jax
import jax.numpy as jnp
import jaxtyping
import pytest

import sam_jax
from cases.models import TINY
from sam_jax.modeling import normalize_images
from sam_jax.modeling.common import Dense
from sam_jax.training.losses import segmentation_loss

ROOT = Path(sam_jax.__file__).parent
ARRAYS = {"Array", "ndarray", "AnyArray", "ArrayLike"}
TAKES_ANYTHING = {"as_rgb"}  # and says what it expected


def test_arrays_that_do_not_belong_together_are_found_where_they_are_passed():
    images = jnp.zeros((2, 8, 8, 3), jnp.uint8)
    with pytest.raises(jaxtyping.TypeCheckError, match="'sizes'"):
        normalize_images(images, jnp.full((3, 2), 8), TINY.encoder)
    with pytest.raises(jaxtyping.TypeCheckError, match="'sizes'"):
        normalize_images(images, jnp.full((2, 2), 8.0), TINY.encoder)


def test_shapes_of_layers_and_of_traced_arrays_are_checked():
    with pytest.raises(jaxtyping.TypeCheckError, match="'x'"):
        jax.eval_shape(Dense(4, 2).init, jax.random.key(0), jnp.zeros((1, 5)))
    logits, predictions, masks, pixels = (jnp.zeros(s) for s in ((1, 2, 3, 4, 4), (1, 2, 3), (1, 2, 4, 5), (1, 4, 4)))
    with pytest.raises(jaxtyping.TypeCheckError, match="'target_masks'"):
        jax.jit(segmentation_loss, static_argnames="config")(
            logits, predictions, masks, pixels, config=sam_jax.config.LossConfig()
        )


def bare_arrays(annotation: ast.expr | None) -> bool:
    """Says whether an annotation names an array without its shape."""
    if annotation is None:
        return False
    if isinstance(annotation, ast.Subscript):
        name = annotation.value.attr if isinstance(annotation.value, ast.Attribute) else annotation.value.id
        if hasattr(jaxtyping, name) or name == "Callable":
            return False
    if isinstance(annotation, ast.Name | ast.Attribute):
        return (annotation.attr if isinstance(annotation, ast.Attribute) else annotation.id) in ARRAYS
    return any(bare_arrays(child) for child in ast.iter_child_nodes(annotation) if isinstance(child, ast.expr))


@pytest.mark.parametrize("room", ["modeling", "ops", "training", "clip/network.py", "clip/crops.py", "detection"])
def test_arrays_in_public_signatures_have_shapes(room):
    path = ROOT / room
    without = []
    for file in [path] if path.is_file() else path.rglob("*.py"):
        tree = ast.parse(file.read_text())
        bodies = [tree.body, *(node.body for node in tree.body if isinstance(node, ast.ClassDef))]
        for function in (node for body in bodies for node in body if isinstance(node, ast.FunctionDef)):
            public = not function.name.startswith("_") or function.name == "__call__"
            arguments = [
                a.annotation for a in (*function.args.args, *function.args.kwonlyargs, function.args.vararg) if a
            ]
            if public and function.name not in TAKES_ANYTHING and any(map(bare_arrays, [*arguments, function.returns])):
                without.append(f"{file.relative_to(ROOT)}: {function.name}")
    assert not without
