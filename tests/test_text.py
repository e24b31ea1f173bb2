"""Text prompts: one more token, beside points and boxes, in models that were trained for it and in no others."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from cases.images import make_image
from cases.models import SMALL, SMALL_CLIP, WITH_TEXT
from sam_jax import Clip, Prompt, Sam, SamConfig, SamPredictor, predict_batch
from sam_jax.checkpoints import convert_checkpoint, expected_shapes, load_checkpoint, save_checkpoint
from sam_jax.clip.network import init_clip_params
from sam_jax.config import VIT_B
from sam_jax.modeling import decode_masks, encode_prompts, init_params
from sam_jax.prompting.prompts import pack_prompts
from sam_jax.types import NOT_A_POINT, PAD, Prompts

SIZE = (40, 70)


@pytest.fixture(scope="module")
def model() -> Sam:
    return Sam(WITH_TEXT, init_params(WITH_TEXT, jax.random.key(0)))


@pytest.fixture(scope="module")
def clip() -> Clip:
    return Clip(SMALL_CLIP, init_clip_params(SMALL_CLIP, jax.random.key(1)))


@pytest.fixture(scope="module")
def predictor(model, clip) -> SamPredictor:
    predictor = SamPredictor(model, clip)
    predictor.set_image(make_image(*SIZE))
    return predictor


def test_the_text_prompt_is_a_linear_map_and_nothing_else(model):
    shapes = expected_shapes(WITH_TEXT)
    assert shapes.keys() - expected_shapes(SMALL).keys() == {
        "prompt_encoder/text_projection/kernel",
        "prompt_encoder/text_projection/bias",
    }
    vit_b = dataclasses.replace(VIT_B, text_dim=768, text_encoder="clip_l14_336")
    assert expected_shapes(vit_b)["prompt_encoder/text_projection/kernel"] == (768, 256)
    # The rest starts as it would without.
    without = flatten_dict(init_params(SMALL, jax.random.key(0)), sep="/")
    ours = flatten_dict(model.params, sep="/")
    for name, value in without.items():
        np.testing.assert_array_equal(ours[name], value)
    embedding = np.random.default_rng(0).normal(size=(1, 1, WITH_TEXT.text_dim)).astype(np.float32)
    prompts = Prompts(np.zeros((1, 1, 2, 2), np.float32), np.array([[[1, NOT_A_POINT]]]), text_embeddings=embedding)
    encoded = encode_prompts(model.params, prompts, WITH_TEXT)
    projection = model.params["prompt_encoder"]["text_projection"]
    np.testing.assert_allclose(
        encoded.sparse[0, 0, 2], embedding[0, 0] @ projection["kernel"] + projection["bias"], rtol=2e-5, atol=1e-5
    )
    np.testing.assert_array_equal(encoded.sparse_mask, np.ones((1, 1, 3), bool))


def test_an_absent_text_is_exactly_no_text(model):
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(1, SMALL.grid_size, SMALL.grid_size, SMALL.prompt_dim)).astype(np.float32)
    points, labels = rng.uniform(0, 64, (1, 2, 3, 2)).astype(np.float32), np.array([[[1, 0, NOT_A_POINT], [2, 3, PAD]]])

    @jax.jit
    def decode(prompts):
        return decode_masks(model.params, embeddings, encode_prompts(model.params, prompts, WITH_TEXT), WITH_TEXT)

    plain = decode(Prompts(points, labels))
    texts = rng.normal(size=(1, 2, WITH_TEXT.text_dim)).astype(np.float32)
    absent = decode(Prompts(points, labels, text_embeddings=texts, has_text=np.zeros((1, 2), bool)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), plain, absent)
    # What stands in an absent slot reaches nothing, to the bit.
    other = decode(Prompts(points, labels, text_embeddings=100 * texts, has_text=np.zeros((1, 2), bool)))
    jax.tree.map(np.testing.assert_array_equal, other, absent)
    one = decode(Prompts(points, labels, text_embeddings=texts, has_text=np.array([[False, True]])))
    np.testing.assert_array_equal(one.low_res_logits[:, 0], absent.low_res_logits[:, 0])
    assert np.abs(one.low_res_logits[:, 1] - absent.low_res_logits[:, 1]).max() > 1e-3


def test_texts_go_with_points_boxes_and_masks_in_any_mix_and_batch(predictor, model, clip):
    mask = np.random.default_rng(1).normal(size=(SMALL.low_res_size,) * 2)
    prompts = [
        Prompt(text="a wheel"),
        Prompt([[30, 20]], [1], text="a wheel"),
        Prompt(box=[10, 5, 50, 35], text="a wheel"),
        Prompt([[30, 20], [3, 3]], [1, 0], [10, 5, 50, 35], mask, "a red circle"),
        Prompt([[30, 20]], [1]),
        Prompt(text="a red circle"),
    ]
    together = predictor.predict_prompts(prompts)
    assert len({tuple(iou.round(5)) for iou in together.iou_predictions}) == len(prompts)
    for q, prompt in enumerate(prompts):
        alone = predictor.predict_prompts([prompt])
        np.testing.assert_allclose(together.low_res_logits[q], alone.low_res_logits[0], atol=1e-5)
    batch = predict_batch(model, [make_image(*SIZE), make_image(64, 33, seed=2)], [prompts, prompts[:1]], clip=clip)
    np.testing.assert_allclose(batch[0].low_res_logits, together.low_res_logits, atol=1e-5)
    _, _, logits = predictor.predict(np.array([[30, 20]]), np.array([1]), text="a wheel")
    np.testing.assert_allclose(logits, together.low_res_logits[1], atol=1e-5)
    embedding = clip.embed_texts(["A  Wheel"])[0]
    given = predictor.predict_prompts([Prompt(text_embedding=3 * embedding)])  # of any length
    np.testing.assert_allclose(given.low_res_logits[0], together.low_res_logits[0], atol=1e-5)


def test_a_text_takes_the_place_of_the_padding_point():
    text = np.ones(WITH_TEXT.text_dim)
    packed = pack_prompts([[Prompt([[1, 1]], [1], text_embedding=text), Prompt([[1, 1]], [1])]], [SIZE], WITH_TEXT)
    assert packed.labels[0, 0].tolist() == [1, PAD]
    assert packed.labels[0, 1].tolist() == [1, NOT_A_POINT]
    assert packed.has_text[0].tolist() == [True, False, False, False]
    assert pack_prompts([[Prompt([[1, 1]], [1])]], [SIZE], WITH_TEXT).text_embeddings is None


def test_bad_texts_and_models_are_called_so(predictor, model, clip):
    for text, message in {"": "what to look for", "word " * 80: "at most 75 tokens"}.items():
        with pytest.raises(ValueError, match=message):
            predictor.predict(text=text)
    assert predictor.predict(text="一只红色的猫")[0].shape == (3, *SIZE)  # other scripts are CLIP's business
    plain = Sam(SMALL, init_params(SMALL, jax.random.key(0)))
    with pytest.raises(ValueError, match="not trained for text prompts, so it takes no CLIP"):
        SamPredictor(plain, clip)
    without = SamPredictor(plain)
    without.set_image(make_image(*SIZE))
    with pytest.raises(ValueError, match="'tiny' was not trained for text prompts; give points"):
        without.predict(text="a wheel")
    with pytest.raises(ValueError, match="not trained for text prompts"):
        predict_batch(plain, [make_image(*SIZE)], [[Prompt(text="a wheel")]])
    no_clip = SamPredictor(model)
    no_clip.set_image(make_image(*SIZE))
    with pytest.raises(ValueError, match=r"clip=load_clip\('small'\)"):
        no_clip.predict(text="a wheel")
    for change in ({"embedding_dim": 16}, {"name": "other"}):
        config = dataclasses.replace(SMALL_CLIP, **change)
        with pytest.raises(ValueError, match="was trained with CLIP 'small', whose embeddings are 32 wide"):
            SamPredictor(model, Clip(config, init_clip_params(config, jax.random.key(0))))
    with pytest.raises(ValueError, match=r"text_embedding must have shape \(32,\)"):
        predictor.predict_prompts([Prompt(text_embedding=np.ones(16))])
    with pytest.raises(ValueError, match="finite and not zero"):
        predictor.predict_prompts([Prompt(text_embedding=np.zeros(32))])
    prompts = Prompts(np.zeros((1, 1, 2, 2)), np.full((1, 1, 2), PAD), text_embeddings=jnp.ones((1, 1, 16)))
    with pytest.raises(ValueError, match="32 wide, got 16"):
        encode_prompts(model.params, prompts, WITH_TEXT)
    with pytest.raises(ValueError, match="no text prompt"):
        encode_prompts(plain.params, prompts, SMALL)
    with pytest.raises(ValueError, match="go together"):
        dataclasses.replace(SMALL, text_dim=32)


def test_a_text_prompt_is_kept_in_our_format_and_left_out_of_others(model, tmp_path):
    params = jax.device_get(model.params)
    save_checkpoint(tmp_path / "ours.safetensors", params, WITH_TEXT)
    loaded, config = load_checkpoint(tmp_path / "ours.safetensors")
    assert config == WITH_TEXT
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    convert_checkpoint(tmp_path / "ours.safetensors", tmp_path / "copy.safetensors")
    assert load_checkpoint(tmp_path / "copy.safetensors")[1] == WITH_TEXT
    for target in ("official.pth", "huggingface"):
        convert_checkpoint(tmp_path / "ours.safetensors", tmp_path / target)
        loaded, config = load_checkpoint(tmp_path / target)
        assert (config.text_dim, config.text_encoder) == (0, "")
        flat, whole = flatten_dict(loaded, sep="/"), flatten_dict(params, sep="/")
        assert whole.keys() - flat.keys() == {f"prompt_encoder/text_projection/{part}" for part in ("kernel", "bias")}
        for name, value in flat.items():
            np.testing.assert_array_equal(value, whole[name])


def test_configs_without_a_text_prompt_are_written_as_before():
    assert "text" not in SMALL.to_json()
    assert SamConfig.from_json(SMALL.to_json()) == SMALL
    assert SamConfig.from_json(WITH_TEXT.to_json()) == WITH_TEXT
    assert WITH_TEXT.without_text() == SMALL
