"""Training on maps of an encoder's frozen part: as on images, resumable, bounded, and refused where it is wrong."""

import dataclasses

import jax
import numpy as np
import pytest

from cases.efficientnet_lite import MODEL
from cases.models import SMALL
from cases.training import make_config, start, write_examples
from sam_jax.checkpoints import load_checkpoint
from sam_jax.config import DataConfig, FinetuneConfig, PromptConfig
from sam_jax.data import cached_views
from sam_jax.data.augment import prepare_example, stack_rows
from sam_jax.data.bad_records import BadRecords
from sam_jax.data.cached_views import draw_masks
from sam_jax.data.loader import make_loader
from sam_jax.errors import UserError
from sam_jax.modeling import init_params
from sam_jax.modeling.image_encoder import frozen_part
from sam_jax.training import encoded_views
from sam_jax.training.encoded_views import cache_views
from sam_jax.training.loop import train
from sam_jax.training.sam import sam_task
from sam_jax.training.step import run_rounds
from sam_jax.training.trainable import trained_in_encoder

KEY = jax.random.key(1)
NOT_THE_BACKBONE = r"^(?!image_encoder/backbone/)"
CONFIG = make_config(
    model=MODEL,
    data=DataConfig(
        batch_size=2,
        masks_per_image=2,
        scale_range=(0.7, 1.5),
        flip_probability=0.5,
        colour_jitter=0.2,
        copy_paste_probability=0.5,
    ),
    prompts=PromptConfig(point_rounds=0, refine_rounds=0),
    finetune=FinetuneConfig(NOT_THE_BACKBONE, cache_views=2),
    drop_path=0.1,
)


@pytest.fixture(scope="module")
def params():
    return init_params(MODEL, jax.random.key(0))


@pytest.fixture
def source(tmp_path):
    (tmp_path / "images").mkdir()
    return write_examples(tmp_path / "images", 3)


def loader(source, views, config=CONFIG, **changes):
    args = {"model": config.model, "config": config.data, "loss_size": config.loss.size, "seed": config.seed}
    return make_loader(source, views=views, **args, **changes)


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_step_on_cached_maps_is_the_step_on_the_images_of_the_same_views(tmp_path, source, params):
    views = cache_views(source, params, CONFIG, tmp_path / "views")
    assert len(views) == 6
    rows, cached_rows = [], []
    for number in (4, 2):
        data = dataclasses.replace(CONFIG.data, masks_per_image=99)
        example, rng = source[number % 3], np.random.default_rng((CONFIG.seed, number))
        row = prepare_example(example, rng, 64, data, CONFIG.loss.size, True, source)
        cached = views[number]
        assert (cached.size, cached.image) == (row.size, None)
        assert_equal((cached.boxes, cached.patches), (row.boxes, row.patches))
        rows.append(draw_masks(row, np.random.default_rng(0), CONFIG.data))
        cached_rows.append(draw_masks(cached, np.random.default_rng(0), CONFIG.data))
    batch, cached = stack_rows(rows, 2, CONFIG.loss.size), stack_rows(cached_rows, 2, CONFIG.loss.size)
    assert {name: x.shape for name, x in cached.maps.items()} == {
        "stride_4": (2, 16, 16, 6),
        "stride_8": (2, 8, 8, 8),
        "stride_16": (2, 4, 4, 12),
        "stride_32": (2, 2, 2, 20),
    }
    assert_equal(batch[1:5], cached[1:5])

    state, step = start(CONFIG, params)
    (new, metrics), (new_cached, metrics_cached) = step(state, batch, KEY), step(state, cached, KEY)
    for name in ("loss", "iou", "grad_norm"):
        np.testing.assert_allclose(metrics_cached[name], metrics[name], rtol=5e-3, err_msg=name)
    assert "backbone" not in new.params["image_encoder"]
    fusion = [tree.params["image_encoder"]["fusion"]["fine"] for tree in (new, new_cached, state)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3), *fusion[:2])
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a != b).any()), *fusion[1:]))

    # The maps that were computed before are all that is used: the backbone does not even have params.
    without = params | {"image_encoder": {k: v for k, v in params["image_encoder"].items() if k != "backbone"}}
    rounds = run_rounds(without, jax.tree.map(jax.numpy.asarray, cached), KEY, CONFIG, training=False)
    assert np.isfinite(rounds.terms["loss"]).all()


def test_batches_of_views_follow_from_the_seed_and_draw_masks_anew(tmp_path, source, params):
    views = cache_views(source, params, CONFIG, tmp_path / "views")
    batches = [next(iterator) for iterator in [loader(source, views)] for _ in range(6)]
    assert batches[0].images is None
    again = loader(source, views, first_batch=3)
    assert_equal([next(again) for _ in range(3)], batches[3:])
    maps = [x.tobytes() for batch in batches for x in batch.maps["stride_8"]]
    assert len(set(maps)) == 6  # two epochs of all views
    assert len(set(maps[:6])) == 6
    one = dataclasses.replace(CONFIG, data=dataclasses.replace(CONFIG.data, masks_per_image=1, batch_size=6))
    drawn = [next(iterator) for iterator in [loader(source, views, one)] for _ in range(6)]
    assert len({batch.masks.sum() for batch in drawn}) > 1


def test_a_cache_that_was_stopped_goes_on_and_grows_by_further_views(tmp_path, source, params, monkeypatch):
    whole = cache_views(source, params, CONFIG, tmp_path / "whole")
    monkeypatch.setattr(cached_views, "FILE_BYTES", 2 * whole.files.view_bytes)
    folder = tmp_path / "views"
    with monkeypatch.context() as patch:
        made = []

        def make_or_stop(source, config, number, original=encoded_views._make_view):
            made.append(number)
            if len(made) > 3:
                raise KeyboardInterrupt
            return original(source, config, number)

        patch.setattr(encoded_views, "_make_view", make_or_stop)
        with pytest.raises(KeyboardInterrupt):
            cache_views(source, params, CONFIG, folder)
    (first,) = folder.glob("*.array_record")
    assert first.name == "00000000-00000002.array_record"
    before = first.stat().st_ino
    views = cache_views(source, params, CONFIG, folder)
    assert first.stat().st_ino == before
    assert len(list(folder.glob("*.array_record"))) == 3
    for i in range(6):
        assert_equal(views[i].maps, whole[i].maps)
        assert_equal(views[i].boxes, whole[i].boxes)

    more = dataclasses.replace(CONFIG, finetune=dataclasses.replace(CONFIG.finetune, cache_views=3))
    grown = cache_views(source, params, more, folder)
    assert len(grown) == 9
    assert first.stat().st_ino == before
    assert_equal(grown[5].maps, whole[5].maps)


def test_views_of_something_else_are_refused_with_what_differs(tmp_path, source, params):
    cache_views(source, params, CONFIG, tmp_path)
    cache_views(source, params, dataclasses.replace(CONFIG, steps=7), tmp_path)
    other = jax.tree.map(lambda x: x + 1, params)
    with pytest.raises(UserError, match=r"made with other params; give another finetune\.cache-folder"):
        cache_views(source, other, CONFIG, tmp_path)
    brighter = dataclasses.replace(CONFIG, seed=3, data=dataclasses.replace(CONFIG.data, colour_jitter=0.3))
    with pytest.raises(UserError, match="made with other data, seed"):
        cache_views(source, params, brighter, tmp_path)


def test_a_cache_that_would_be_too_large_is_refused_before_it_begins(tmp_path, source, params):
    finetune = dataclasses.replace(CONFIG.finetune, cache_views=1000, cache_gb=0.01)
    with pytest.raises(UserError, match=r"at most 0.01 GB .*1000 views of 3 images come to 0.0139 GB .*fewer views"):
        cache_views(source, params, dataclasses.replace(CONFIG, finetune=finetune), tmp_path / "views")
    assert not (tmp_path / "views").exists()


def test_an_image_that_cannot_be_used_is_counted_at_each_of_its_views(tmp_path, source, params):
    source[1].path.unlink()
    views = cache_views(source, params, CONFIG, tmp_path / "views")
    bad_records = BadRecords(1.0)
    iterator = loader(source, views, bad_records=bad_records)
    batches = [next(iterator) for _ in range(3)]
    assert sum(batch.valid.any(1).sum() for batch in batches) == 4
    assert bad_records.bad == 2
    assert list(bad_records.reasons) == ["image cannot be read"]


def test_a_run_on_cached_views_goes_on_with_those_of_a_folder_that_runs_share(tmp_path, run_config):
    finetune = FinetuneConfig(NOT_THE_BACKBONE, cache_views=2, cache_folder=tmp_path / "shared")
    config = dataclasses.replace(run_config, model=MODEL, finetune=finetune, steps=1)
    train(config)
    (file,) = (tmp_path / "shared").glob("*.array_record")
    before = file.stat().st_ino
    result = train(dataclasses.replace(config, steps=2), resume=True)
    assert (result.step, file.stat().st_ino) == (2, before)
    tuned, model = load_checkpoint(result.path)
    assert model == MODEL
    assert {"backbone", "fusion"} <= tuned["image_encoder"].keys()


@pytest.mark.parametrize(
    ("model", "trainable", "maps"),
    [
        (MODEL, r"^mask_decoder/", ("embedding",)),
        (MODEL, r"decoder|/neck_", ("last", "stride_8", "stride_4")),
        (MODEL, NOT_THE_BACKBONE, ("stride_8", "stride_16", "stride_32", "stride_4")),
        (SMALL, r"decoder|/neck_", ("last",)),
        (dataclasses.replace(MODEL, high_res_features=False), NOT_THE_BACKBONE, ("stride_8", "stride_16", "stride_32")),
    ],
)
def test_the_largest_frozen_part_of_the_encoder_is_cached(model, trainable, maps):
    shapes = jax.eval_shape(lambda: init_params(model, KEY))
    assert frozen_part(model, trained_in_encoder(shapes, FinetuneConfig(trainable))).maps == maps


@pytest.mark.parametrize(
    ("model", "finetune", "message"),
    [
        (
            MODEL,
            FinetuneConfig("fusion|blocks_5", cache_views=1),
            r"has \d+ of its params, .*backbone/blocks_5",
        ),
        (SMALL, FinetuneConfig("blocks_1", cache_views=1), "first part of the vit encoder .*image_encoder/blocks_1"),
        (MODEL, FinetuneConfig("decoder", cache_views=1, cache_embeddings=True), "got both"),
    ],
)
def test_a_part_that_learns_is_not_cached(model, finetune, message):
    shapes = jax.eval_shape(lambda: init_params(model, KEY))
    with pytest.raises(UserError, match=message):
        sam_task(make_config(model=model, finetune=finetune), shapes)
