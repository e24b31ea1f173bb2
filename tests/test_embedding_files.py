"""Embeddings of images in files: what comes back, and what is refused."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from cases.models import SMALL
from sam_jax import SamPredictor
from sam_jax.embedding_files import KEY
from sam_jax.errors import UserError
from sam_jax.model import Sam
from sam_jax.modeling import init_params


@pytest.fixture(scope="module")
def model():
    return Sam(SMALL, init_params(SMALL, jax.random.key(0)))


@pytest.fixture
def saved(model, tmp_path):
    """A predictor with an image, and the file of its embedding."""
    predictor = SamPredictor(model)
    predictor.set_image(np.random.default_rng(0).integers(0, 255, (40, 70, 3), dtype=np.uint8))
    predictor.save_embedding(tmp_path / "image.safetensors")
    return predictor, tmp_path / "image.safetensors"


def test_masks_are_those_of_the_image_that_was_encoded(model, saved):
    predictor, path = saved
    other = SamPredictor(model)
    other.load_embedding(path)
    assert other.original_size == (40, 70)
    for ours, theirs in zip(predictor.predict([[20, 10]], [1]), other.predict([[20, 10]], [1]), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_an_embedding_of_another_model_is_refused_and_the_image_stays(model, saved):
    _, path = saved
    params = jax.tree.map(np.array, model.params)
    params["mask_decoder"]["iou_token"][0, 0] += 1
    other = SamPredictor(Sam(SMALL, params))
    with pytest.raises(UserError, match="an embedding of another model"):
        other.load_embedding(path)
    assert not other.is_image_set
    with pytest.raises(RuntimeError, match="no image is set"):
        other.save_embedding(path)


def change_facts(path, **changes):
    facts = {"model": "", "name": "smallest", "size": [40, 70]} | changes
    save_file(load_file(path), path, {KEY: json.dumps(facts)})


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda path: path.unlink(), "image.safetensors"),
        (lambda path: path.write_bytes(b""), "it is none"),
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), "it is none"),
        (lambda path: save_file({"weight": np.zeros(3)}, path), "it is none"),
        (lambda path: change_facts(path, size=3), "it is none"),
    ],
)
def test_a_file_that_is_no_embedding_is_called_so(model, saved, damage, problem):
    _, path = saved
    damage(path)
    with pytest.raises((UserError, FileNotFoundError), match=problem):
        SamPredictor(model).load_embedding(path)


def test_numbers_that_are_not_finite_are_refused(model, saved):
    predictor, path = saved
    tensors = load_file(path)
    tensors["embedding"][0, 0, 0, 0] = np.nan
    predictor.set_embedding(tensors["embedding"], (40, 70))
    predictor.save_embedding(path)
    with pytest.raises(UserError, match="is damaged"):
        SamPredictor(model).load_embedding(path)
