"""Crops of objects against Pillow's, and which patches count as the object's."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from cases.models import SMALL_CLIP
from sam_jax.clip.crops import crop_objects, square_boxes
from sam_jax.clip.model import Clip
from sam_jax.clip.network import init_clip_params

SIZE = (50, 70)  # of the image in a frame of 80


@pytest.fixture(scope="module")
def make_image() -> np.ndarray:
    coarse = np.random.default_rng(0).integers(0, 256, (10, 14, 3)).astype(np.uint8)
    frame = np.full((80, 80, 3), 255, np.uint8)
    frame[: SIZE[0], : SIZE[1]] = np.asarray(Image.fromarray(coarse).resize(SIZE[::-1], Image.Resampling.BICUBIC))
    return frame


def crop(frame, mask, square, config=SMALL_CLIP, hide=False):
    pixels, patches = crop_objects(
        jnp.asarray(frame)[None],
        jnp.array([SIZE]),
        jnp.asarray(mask)[None, None],
        jnp.array([[square]], jnp.float32),
        config,
        hide=jnp.array([[hide]]),
    )
    return np.asarray(pixels[0, 0]), np.asarray(patches[0, 0])


@pytest.mark.parametrize("square", [(5, 3, 45, 43), (10.5, 8.25, 30.5, 28.25), (20, 10, 28, 18)])
def test_a_crop_is_pillows(make_image, square):
    pixels, _ = crop(make_image, np.ones((80, 80), bool), square)
    resized = Image.fromarray(make_image[: SIZE[0], : SIZE[1]]).resize((32, 32), Image.Resampling.BICUBIC, box=square)
    expected = (np.asarray(resized) - np.array(SMALL_CLIP.pixel_mean)) / np.array(SMALL_CLIP.pixel_std)
    # Pillow resamples with 8-bit weights and rounds between its two passes.
    assert np.abs(pixels - expected).max() < 2.1 / min(SMALL_CLIP.pixel_std)


def test_outside_of_the_image_is_zero_and_so_is_what_is_hidden(make_image):
    mask = np.zeros((80, 80), bool)
    mask[10:30, 40:60] = True
    square = (30, -10, 90, 50)  # reaches over the top and the right
    pixels, patches = crop(make_image, mask, square)
    rows = np.arange(32) * 60 / 32 - 10 + 60 / 64
    columns = np.arange(32) * 60 / 32 + 30 + 60 / 64
    inside = ((rows >= 0) & (rows < 50))[:, None] & (columns < 70)[None]
    assert (pixels[~inside] == 0).all()
    assert (pixels[inside] != 0).any(-1).all()
    hidden, _ = crop(make_image, mask, square, hide=True)
    of_object = ((rows >= 10) & (rows < 30))[:, None] & ((columns >= 40) & (columns < 60))[None]
    np.testing.assert_array_equal(hidden[of_object], pixels[of_object])
    assert (hidden[~of_object] == 0).all()
    # Patches are 15 pixels: the object, 20 to 40 down and 10 to 30 across, covers half of few of them.
    expected = np.zeros((4, 4), bool)
    expected[1:3, 1] = True
    assert (patches & expected).any()
    assert not patches[0].any()
    assert not patches[:, 3].any()


def test_a_speck_has_the_patch_that_it_covers_most(make_image):
    mask = np.zeros((40, 40), bool)  # masks may come at half the scale
    mask[10, 15] = True
    _, patches = crop(make_image, mask, (10, 0, 50, 40))
    assert patches.sum() == 1
    assert patches[2, 2]


def test_squares_keep_centres_and_take_the_longer_side():
    squares = square_boxes(jnp.array([[10.0, 20.0, 30.0, 24.0], [5.0, 5.0, 5.0, 5.0]]), jnp.array([1.5, 1.0]))
    np.testing.assert_allclose(squares, [[5, 7, 35, 37], [4.5, 4.5, 5.5, 5.5]])


def test_objects_and_texts_are_embedded_in_groups_as_alone():
    clip = Clip(SMALL_CLIP, init_clip_params(SMALL_CLIP, jax.random.key(0)))
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8)
    masks = np.zeros((18, 40, 60), bool)
    for i in range(18):
        masks[i, i : i + 9, 2 * i : 2 * i + 7] = True
    together = clip.embed_objects(image, masks)
    assert together.shape == (18, 32)
    np.testing.assert_allclose(np.linalg.norm(together, axis=-1), 1, rtol=1e-5)
    np.testing.assert_allclose(clip.embed_objects(image, masks[17:]), together[17:], atol=1e-5)
    texts = [f"thing {i}" for i in range(70)]
    embedded = clip.embed_texts(texts)
    np.testing.assert_allclose(clip.embed_texts(texts[69:]), embedded[69:], atol=1e-5)
    assert clip.embed_texts([]).shape == (0, 32)
    with pytest.raises(ValueError, match="at least one pixel"):
        clip.embed_objects(image, np.zeros((1, 40, 60), bool))
    with pytest.raises(ValueError, match=r"\(n, 40, 60\)"):
        clip.embed_objects(image, masks[:, :30])
    assert dataclasses.replace(clip, dtype=jnp.bfloat16).embed_texts(["a"]).dtype == np.float32
