"""Training a detector: what is matched and drawn, that a step learns, and a run from files."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from cases.models import DETECTOR, SMALL, TRAINED
from cases.training import make_batch, make_detector_config, write_examples
from sam_jax.checkpoints import load_checkpoint, save_checkpoint
from sam_jax.config import DataConfig, FinetuneConfig, ParallelConfig
from sam_jax.data import training_sets
from sam_jax.detection.detector import init_detector
from sam_jax.modeling import init_params
from sam_jax.training.detector.step import train_step
from sam_jax.training.detector.targets import match_boxes, sample_boxes
from sam_jax.training.detector.task import detector_task, initial_params
from sam_jax.training.loop import compile_program, train
from sam_jax.training.optimizer import make_optimizer
from sam_jax.training.step import init_state
from sam_jax.training.watch import read_metrics


def test_boxes_are_matched_by_iou_and_each_object_has_its_best_anchor():
    truth = np.float32([[0, 0, 10, 10], [20, 20, 24, 24], [0, 0, 10, 10]])
    exists = np.array([True, True, False])
    boxes = np.float32([[0, 0, 10, 8], [0, 0, 10, 5], [0, 0, 10, 2], [20, 20, 30, 30], [50, 50, 60, 60]])
    match = match_boxes(boxes, truth, exists, 0.3, 0.7)
    np.testing.assert_array_equal(match.positive, [True, False, False, False, False])
    np.testing.assert_array_equal(match.negative, [False, False, True, True, True])
    match = match_boxes(boxes, truth, exists, 0.3, 0.7, best_for_each=True)
    np.testing.assert_array_equal(match.positive, [True, False, False, True, False])
    np.testing.assert_array_equal(match.negative, [False, False, True, False, True])
    assert match.objects[3] == 1
    nothing = match_boxes(boxes, truth, np.zeros(3, bool), 0.3, 0.7, best_for_each=True)
    assert not nothing.positive.any()
    assert nothing.negative.all()


@pytest.mark.parametrize(("positives", "negatives"), [(3, 50), (40, 50), (40, 2), (0, 0), (0, 3)])
def test_as_many_boxes_are_drawn_as_there_are_and_positives_come_first(positives, negatives):
    labels = np.full(100, -1)
    labels[:positives], labels[50 : 50 + negatives] = 1, 0
    draw = jax.jit(functools.partial(sample_boxes, count=16, share=0.25))
    sample = draw(jax.random.key(0), labels == 1, labels == 0)
    ours = min(positives, 4)
    assert sample.positive.sum() == ours
    assert sample.valid.sum() == min(16, ours + negatives)
    assert sample.positive[:ours].all()
    drawn = np.asarray(sample.indices)[np.asarray(sample.valid)]
    assert len(set(drawn.tolist())) == len(drawn)
    np.testing.assert_array_equal(labels[drawn] == 1, np.asarray(sample.positive)[np.asarray(sample.valid)])
    if positives > 4:
        again = draw(jax.random.key(1), labels == 1, labels == 0)
        assert (again.indices[:4] != sample.indices[:4]).any()


@pytest.mark.slow
def test_one_batch_is_learned_by_heart():
    config = make_detector_config(model=dataclasses.replace(DETECTOR, cascade=False))
    batch, key = make_batch(), jax.random.key(1)
    make = functools.partial(make_optimizer, config.optimizer, SMALL.encoder)
    state = init_state(init_detector(config.model, jax.random.key(0)), key, config, make)
    run = functools.partial(train_step, config=config, optimizer=make(state.params))
    step = jax.jit(run, donate_argnums=0)
    losses = []
    for _ in range(200):
        state, metrics = step(state, batch, key)
        losses.append(metrics)
    first, last = losses[0], losses[-1]
    assert all(np.isfinite(value) for value in last.values())
    for name in ("anchor_scores", "box_scores_0", "masks"):  # the boxes' own loss grows with the number of positives
        assert last[name] < 0.5 * first[name], name


@pytest.fixture
def run_config(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    examples = write_examples(tmp_path / "data")
    monkeypatch.setitem(training_sets.TRAINING_SETS, "synthetic", lambda root: examples)
    save_checkpoint(tmp_path / "sam.safetensors", init_params(SMALL, jax.random.key(7)), SMALL)
    return make_detector_config(
        out=tmp_path / "run",
        model=dataclasses.replace(DETECTOR, cascade=False),
        data=DataConfig(tmp_path / "data", format="named", datasets=("synthetic",), batch_size=2, masks_per_image=2),
        init_from=str(tmp_path / "sam.safetensors"),
        finetune=FinetuneConfig(trainable=r"^(pyramid|rpn_head|box_heads|mask_head)"),
        steps=3,
        validate_every=3,
        validation_batches=1,
        save_every=1,
        log_every=1,
        parallel=ParallelConfig("mesh", 2, 1),
    )


@pytest.mark.slow
def test_a_run_goes_on_where_it_was_and_leaves_a_detector_on_the_frozen_encoder(run_config):
    whole, config = load_checkpoint(train(dataclasses.replace(run_config, steps=2)).path)
    assert config == run_config.model
    params, _ = load_checkpoint(train(run_config, resume=True).path)
    start = initial_params(run_config)
    jax.tree.map(np.testing.assert_array_equal, params["image_encoder"], jax.device_get(start["image_encoder"]))
    assert (params["pyramid"]["simfp_2_0"]["kernel"] != whole["pyramid"]["simfp_2_0"]["kernel"]).any()
    records = read_metrics(run_config.out)
    assert [r["step"] for r in records if "loss" in r] == [1, 2, 3]
    assert 0 <= [r for r in records if "validation_found" in r][-1]["validation_found"] <= 1
    assert all(r["learning_rate"] > 0 and r["grad_norm"] > 0 for r in records if "loss" in r)
    assert [r["step"] for r in records if "validation_loss" in r] == [0, 2, 3]
    for name in ("predictions/0000003.png", "curves.png"):
        assert (run_config.out / name).is_file()
    with pytest.raises(FileExistsError, match="resume"):
        train(run_config)


@pytest.mark.slow
def test_pmap_and_mesh_give_the_same_step(run_config):
    results = []
    for parallel in (ParallelConfig("mesh", 1, 1), ParallelConfig("mesh", 2, 1), ParallelConfig("pmap", 2, 1)):
        config = dataclasses.replace(run_config, parallel=parallel)
        params = initial_params(config)
        program = compile_program(detector_task(config), params)
        state, metrics = program.step(program.init(params), make_batch(), jax.random.key(0))
        results.append(jax.device_get((metrics, program.whole(state).params)))
    for other in results[1:]:
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), results[0], other)


def test_what_cannot_be_trained_is_said(tmp_path):
    with pytest.raises(ValueError, match="one class"):
        make_detector_config(model=dataclasses.replace(DETECTOR, category_ids=(1, 2)))
    with pytest.raises(ValueError, match="cache-embeddings"):
        make_detector_config(finetune=FinetuneConfig(cache_embeddings=True))
    with pytest.raises(ValueError, match=r"profile_steps.* got 5 3"):
        make_detector_config(profile_steps=(5, 3))
    with pytest.raises(ValueError, match="one start"):
        initial_params(make_detector_config(init_from=str(TRAINED), init_encoder_from=tmp_path))
    with pytest.raises(ValueError, match="expected an image encoder like"):
        initial_params(make_detector_config(init_from=str(TRAINED)))
