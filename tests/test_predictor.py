"""SamPredictor: official shapes, no recompilation, padding without effect, and clear errors for every bad input."""

import dataclasses
import pathlib
import sys
import threading

import jax
import numpy as np
import pytest

from cases.images import make_image
from cases.models import SMALL
from sam_jax import Prompt, Sam, SamPredictor, predict_batch
from sam_jax import model as model_module
from sam_jax import predictor as predictor_module
from sam_jax.compat import OfficialPredictor
from sam_jax.modeling import init_params
from sam_jax.predictor import Masks, embed
from sam_jax.prompting.prompts import pack_prompts
from sam_jax.types import NOT_A_POINT, PAD


@pytest.fixture(scope="module")
def model() -> Sam:
    return Sam(SMALL, init_params(SMALL, jax.random.key(0)))


@pytest.fixture
def predictor(model) -> SamPredictor:
    predictor = SamPredictor(model)
    predictor.set_image(make_image(40, 70))
    return predictor


def test_the_official_shapes_and_types_come_back(predictor):
    masks, iou, logits = predictor.predict(np.array([[30, 20]]), np.array([1]))
    assert (masks.shape, masks.dtype) == ((3, 40, 70), bool)
    assert (iou.shape, iou.dtype) == ((3,), np.float32)
    assert (logits.shape, logits.dtype) == ((3, SMALL.low_res_size, SMALL.low_res_size), np.float32)
    single, _, _ = predictor.predict(np.array([[30, 20]]), np.array([1]), multimask_output=False)
    assert single.shape == (1, 40, 70)
    full, _, _ = predictor.predict(np.array([[30, 20]]), np.array([1]), return_logits=True)
    np.testing.assert_array_equal(full > 0, masks)


def test_any_mix_of_prompts_is_taken_and_none_as_well(predictor):
    point, label, box = np.array([[30, 20]]), np.array([1]), np.array([10, 5, 50, 35])
    _, plain, logits = predictor.predict(point, label)
    results = [
        predictor.predict(point, label, box)[1],
        predictor.predict(box=box)[1],
        predictor.predict(mask_input=logits[:1])[1],
        predictor.predict(point, label, box, logits[:1])[1],
        predictor.predict()[1],
    ]
    assert len({tuple(iou.round(5)) for iou in [plain, *results]}) == 6


def test_a_prompt_gives_the_same_alone_and_among_others_of_other_kinds(predictor, model):
    mask = np.random.default_rng(1).normal(size=(SMALL.low_res_size,) * 2)
    prompts = [
        Prompt([[30, 20]], [1]),
        Prompt(box=[10, 5, 50, 35]),
        Prompt([[30, 20], [5, 5], [60, 30]], [1, 0, 1], [10, 5, 50, 35]),
        Prompt(mask=mask),
        Prompt(),
        Prompt([[i, i] for i in range(30)], [i % 2 for i in range(30)]),
    ]
    together = predictor.predict_prompts(prompts, return_logits=True)
    for q, prompt in enumerate(prompts):
        alone = predictor.predict_prompts([prompt], return_logits=True)
        np.testing.assert_allclose(together.low_res_logits[q], alone.low_res_logits[0], atol=1e-5)
        np.testing.assert_allclose(together.iou_predictions[q], alone.iou_predictions[0], atol=1e-5)
        np.testing.assert_allclose(together.masks[q], alone.masks[0], atol=1e-5)
    other = make_image(64, 33, seed=2)
    batch = predict_batch(model, [make_image(40, 70), other], [prompts[:3], prompts[:1]], return_logits=True)
    assert [result.masks.shape for result in batch] == [(3, 3, 40, 70), (1, 3, 64, 33)]
    np.testing.assert_allclose(batch[0].masks, together.masks[:3], atol=1e-5)
    predictor.set_image(other)
    np.testing.assert_allclose(batch[1].masks[0], predictor.predict([[30, 20]], [1], return_logits=True)[0], atol=1e-5)


def test_the_padding_point_comes_with_clicks_but_not_with_a_box():
    def labels(prompt):
        return [label for label in pack_prompts([[prompt]], [(40, 70)], SMALL).labels[0, 0] if label != PAD]

    assert labels(Prompt([[1, 1]], [1])) == [1, NOT_A_POINT]
    assert labels(Prompt([[1, 1]], [0], [0, 0, 9, 9])) == [0, 2, 3]
    assert labels(Prompt(box=[0, 0, 9, 9])) == [2, 3]
    assert labels(Prompt()) == []


def test_coordinates_are_scaled_by_the_rounded_size():
    # 33 x 50 becomes 42 x 64: y scales by 42 / 33, not by 64 / 50.
    points = pack_prompts([[Prompt([[25, 11]], [1])]], [(33, 50)], SMALL).points
    np.testing.assert_allclose(points[0, 0, 0], [25 * 64 / 50, 11 * 42 / 33], rtol=1e-6)


def test_new_image_sizes_and_prompt_counts_compile_nothing_new(model):
    predictor = SamPredictor(model)
    model_module._encode.clear_cache()
    model_module._decode.clear_cache()
    for i, (height, width) in enumerate([(40, 70), (71, 33), (64, 64), (10, 200), (1, 1)]):
        predictor.set_image(make_image(height, width))
        predictor.predict_prompts([Prompt([[0, 0]] * (j + 1), [1] * (j + 1)) for j in range(2 + i % 2)])
    assert model_module._encode._cache_size() == 1
    assert model_module._decode._cache_size() == 1
    # 2 and 3 prompts share the bucket of 4; 2 to 4 tokens that of 4. One more bucket is one more compilation.
    predictor.predict_prompts([Prompt([[0, 0]] * 4, [1] * 4)] * 3)
    assert model_module._decode._cache_size() == 2


def test_both_kinds_of_output_share_one_compilation_and_are_parts_of_the_same_four_masks(predictor):
    model_module._decode.clear_cache()
    three, single = (predictor.predict([[30, 20]], [1], multimask_output=multimask)[2] for multimask in (True, False))
    assert model_module._decode._cache_size() == 1
    embedding = predictor.get_image_embedding()
    prompts = pack_prompts([[Prompt([[30, 20]], [1])]], [(40, 70)], SMALL)
    four = predictor.model.decode(embedding, prompts).low_res_logits[0, 0]
    np.testing.assert_array_equal(np.concatenate([single, three]), four)


def test_more_prompts_than_the_largest_bucket_go_in_several_calls(predictor):
    prompts = [Prompt([[i % 70, i % 40]], [1]) for i in range(66)]
    together = predictor.predict_prompts(prompts, return_logits=True)
    assert together.masks.shape == (66, 3, 40, 70)
    for q in (0, 63, 64, 65):
        alone = predictor.predict_prompts([prompts[q]], return_logits=True)
        np.testing.assert_allclose(together.masks[q], alone.masks[0], atol=1e-5)


def test_images_go_in_groups_and_some_may_have_no_prompt(model):
    images = [make_image(40, 70), make_image(30, 30, seed=1), make_image(64, 33, seed=2)]
    prompts = [[Prompt([[5, 6]], [1])], [], [Prompt(box=[1, 2, 20, 30])] * 2]
    single = predict_batch(model, images, prompts, batch_size=1, return_logits=True)
    grouped = predict_batch(model, images, prompts, batch_size=2, return_logits=True)  # two, then one
    assert [result.masks.shape for result in grouped] == [(1, 3, 40, 70), (0, 3, 30, 30), (2, 3, 64, 33)]
    for one, other in zip(single, grouped, strict=True):
        np.testing.assert_allclose(one.masks, other.masks, atol=1e-5)
        np.testing.assert_allclose(one.iou_predictions, other.iou_predictions, atol=1e-5)


def test_results_may_be_written_into(predictor):
    for array in predictor.predict([[30, 20]], [1]):
        array[...] = 0


def test_another_colour_order_or_kind_of_image_means_what_it_shows(predictor, model):
    image = make_image(30, 20)
    predictor.set_image(image)
    expected = np.asarray(predictor.get_image_embedding())
    opaque = np.concatenate([image, np.full((30, 20, 1), 255, np.uint8)], -1)
    for same, order in [(image[..., ::-1], "BGR"), (opaque, "RGB")]:
        predictor.set_image(same, order)
        np.testing.assert_allclose(predictor.get_image_embedding(), expected, atol=1e-6)
    predictor.set_image(image[..., 0])
    assert predictor.original_size == (30, 20)


def test_no_image_is_an_error_until_one_is_set_and_after_reset(model):
    predictor = SamPredictor(model)
    assert not predictor.is_image_set
    with pytest.raises(RuntimeError, match="set_image"):
        predictor.predict()
    predictor.set_image(make_image(5, 6))
    assert predictor.is_image_set
    predictor.reset_image()
    with pytest.raises(RuntimeError, match="set_image"):
        predictor.get_image_embedding()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"point_coords": [[70, 10]], "point_labels": [1]}, "outside the image of 70 x 40"),
        ({"point_coords": [[-1, 10]], "point_labels": [1]}, "outside the image"),
        ({"point_coords": [[3, np.nan]], "point_labels": [1]}, "finite"),
        ({"point_coords": [[3, 3]], "point_labels": [2]}, "1 .foreground. or 0 .background."),
        ({"point_coords": [[3, 3]], "point_labels": [1, 0]}, "one label for each of 1 points"),
        ({"point_coords": [[3, 3]]}, "go together"),
        ({"point_coords": [3, 3], "point_labels": [1]}, r"\(N, 2\)"),
        ({"box": [9, 9, 9, 20]}, "x1 > x0"),
        ({"box": [9, 20, 12, 3]}, "y1 > y0"),
        ({"point_coords": [[1, 2], [3]], "point_labels": [1, 1]}, "expected numbers as point_coords"),
        ({"point_coords": [["a", 2]], "point_labels": [1]}, "expected numbers as point_coords"),
        ({"point_coords": [[1, 2]], "point_labels": ["fg"]}, "expected numbers as point_labels"),
        ({"box": {"x0": 1}}, "expected numbers as box"),
        ({"box": [1, 2, 3]}, "x0, y0, x1, y1"),
        ({"box": [1, 2, np.inf, 4]}, "finite"),
        ({"box": [80, 2, 90, 4]}, "outside the image"),
        ({"mask_input": np.zeros((1, 40, 70))}, "low_res_logits"),
        ({"mask_input": np.full((32, 32), np.nan)}, "finite"),
    ],
)
def test_a_bad_prompt_is_named(predictor, arguments, message):
    with pytest.raises(ValueError, match=message):
        predictor.predict(**arguments)


@pytest.mark.parametrize(
    ("image", "error"),
    [
        (np.zeros((5, 5, 3), np.float32), TypeError),
        (np.zeros((5, 5, 2), np.uint8), ValueError),
        (np.zeros((0, 5, 3), np.uint8), ValueError),
        (np.zeros((5,), np.uint8), ValueError),
    ],
)
def test_a_bad_image_is_named_and_the_one_before_stays(predictor, image, error):
    with pytest.raises(error, match="image"):
        predictor.set_image(image)
    assert predictor.original_size == (40, 70)


def test_what_is_no_model_or_no_image_says_what_to_pass(model):
    for name in ("small", pathlib.Path("small")):
        with pytest.raises(TypeError, match=r"got \w+ 'small'; load_model\(NAME_OR_PATH\)"):
            SamPredictor(name)
    with pytest.raises(TypeError, match="expected a model, got dict"):
        predict_batch({}, [], [])
    with pytest.raises(TypeError, match=r"sam_jax\.read_image"):
        SamPredictor(model).set_image("photo.jpg")


def test_lists_of_images_and_prompts_must_match(model):
    with pytest.raises(ValueError, match="one list of prompts per image"):
        predict_batch(model, [make_image(5, 5)], [])
    with pytest.raises(ValueError, match="batch_size of at least 1"):
        predict_batch(model, [make_image(5, 5)], [[]], batch_size=0)
    assert predict_batch(model, [], []) == []


def test_bfloat16_arithmetic_stays_close(model, predictor):
    low = SamPredictor(dataclasses.replace(model, dtype=jax.numpy.bfloat16))
    low.set_image(make_image(40, 70))
    exact, rough = (p.predict([[30, 20]], [1])[2] for p in (predictor, low))
    assert rough.dtype == np.float32
    assert np.abs(exact - rough).max() < 0.1 * np.abs(exact).max() + 0.05


def test_threads_that_share_a_predictor_never_mix_two_images(model, monkeypatch):
    predictor = OfficialPredictor(model)  # a SamPredictor, with the official methods
    images = make_image(40, 70), make_image(70, 40)
    embeddings = [embed(model, [image]) for image in images]
    sizes = [image.shape[:2] for image in images]
    seen = []

    def decode(model, embeddings_, prompts, sizes_, *options):
        seen.append((embeddings_ is embeddings[0], sizes_[0] == sizes[0]))
        return [Masks(np.zeros((1, 1, 1, 1)), np.zeros((1, 1)), np.zeros((1, 1, 1, 1)))]

    monkeypatch.setattr(predictor_module, "_predict", decode)
    predictor.set_embedding(embeddings[0], sizes[0])
    stopped = threading.Event()

    def keep_setting():
        while not stopped.is_set():
            for embedding, size in zip(embeddings, sizes, strict=True):
                predictor.set_embedding(embedding, size)

    setters = [threading.Thread(target=keep_setting) for _ in range(2)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for setter in setters:
            setter.start()
        for _ in range(2000):
            predictor.predict(box=np.array([31, 1, 35, 5]))
            predictor.predict_torch(boxes=np.array([[1, 1, 5, 5]]))
    finally:
        stopped.set()
        for setter in setters:
            setter.join()
        sys.setswitchinterval(interval)
    assert len(seen) == 4000
    assert all(embedding == size for embedding, size in seen)
