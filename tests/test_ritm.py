"""RITM: network and predictor against what the original code gave, its checkpoints, its part in evaluations."""

import dataclasses
import json
import threading

import jax
import numpy as np
import pytest
import torch
from ritm_original import random_params

from cases.models import TRAINED
from cases.ritm import CLICKS, LABELS, NETWORKS, OBJECTS, POINTS, RECORDED, SHAPE, STEP, TINY, ZOOM, inputs, photo
from sam_jax.checkpoints import (
    expected_shapes,
    foreign_shapes,
    load_ritm,
    params_from_state,
    save_checkpoint,
    state_from_params,
)
from sam_jax.checkpoints.ritm import config_from_published
from sam_jax.commands.main import main
from sam_jax.errors import UserError
from sam_jax.evals.methods import open_segmenter
from sam_jax.evals.ritm import RitmSegmenter
from sam_jax.evals.segmenters import Clicks
from sam_jax.ritm import HRNET18, RITM_SIZES, Ritm, RitmConfig, RitmPredictor, ZoomIn
from sam_jax.ritm import predictor as predictor_module
from sam_jax.ritm.model import crop_part, paste_part, probabilities
from sam_jax.ritm.network import click_disks, predict_logits
from sam_jax.ritm.predictor import padded_side
from sam_jax.ritm.sampling import aligned_positions, inside, resize, sample
from sam_jax.ritm.zoom import Box, overlap
from sam_jax.types import PAD

ORIGINAL = json.loads(RECORDED.read_text())
JITTED = (crop_part, probabilities, paste_part)


def arguments(model):
    """Returns what the published code was called with when it saved a checkpoint of this config."""
    values = {
        "width": model.width,
        "ocr_width": model.ocr_width,
        "small": model.small,
        "use_leaky_relu": model.leaky_relu,
        "use_rgb_conv": False,
        "use_disks": True,
        "norm_radius": 5,
        "with_prev_mask": model.previous_mask,
        "binary_prev_mask": False,
        "with_aux_output": True,
    }
    return {name: {"type": "builtin", "value": value, "specified": True} for name, value in values.items()}


def published(params, config):
    """Returns what a published checkpoint holds."""
    state = {name: torch.tensor(array) for name, array in state_from_params(params, config, "published").items()}
    counters = [name.replace("running_var", "num_batches_tracked") for name in state if name.endswith("running_var")]
    state |= {name: torch.tensor(7) for name in counters}
    return {
        "state_dict": state,
        "config": {"class": "isegm.model.is_hrnet_model.HRNetModel", "params": arguments(config)},
    }


@pytest.fixture(scope="module")
def tiny():
    return random_params(TINY)


@pytest.fixture(scope="module")
def played():
    """Answers and boxes of every object, and how often each function was compiled for all of them."""
    for function in JITTED:
        function.clear_cache()
    answers = {}
    for name, (seed, weight, threshold) in OBJECTS.items():
        predictor = RitmPredictor(Ritm(TINY, random_params(TINY, seed, weight, threshold)), ZoomIn(**ZOOM))
        predictor.set_image(photo())
        answers[name] = []
        for n in range(1, len(CLICKS) + 1):
            answer = predictor.predict(*zip(*CLICKS[:n], strict=True))
            answers[name].append((answer, predictor.box))
    return answers, [function._cache_size() for function in JITTED]


@pytest.mark.parametrize("name", NETWORKS)
def test_the_network_gives_the_original_logits_whatever_lies_beyond_the_image(name):
    config = NETWORKS[name]
    (image, previous), (h, w) = inputs(), SHAPE
    images, maps = np.full((1, 96, 128, 3), 9, np.float32), np.full((1, 96, 128), 3, np.float32)
    images[0, :h, :w], maps[0, :h, :w] = image, previous
    points, labels = np.zeros((1, 8, 2), np.float32), np.full((1, 8), PAD)
    points[0, : len(POINTS)], labels[0, : len(LABELS)] = POINTS, LABELS
    run = jax.jit(predict_logits, static_argnames="config")
    logits = run(random_params(config), images, maps, points, labels, np.array([SHAPE]), config=config)
    theirs = np.array(ORIGINAL["logits"][name])
    assert theirs.std() > 0.05
    np.testing.assert_allclose(logits[0, :h:STEP, :w:STEP], theirs, atol=1e-5)


@pytest.mark.parametrize("name", OBJECTS)
def test_clicks_zoom_in_and_answer_as_in_the_published_evaluation(played, name):
    answers, _ = played
    recorded = ORIGINAL["answers"][name]
    boxes = [None if r["box"] is None else Box(*r["box"]) for r in recorded]
    assert len(set(boxes)) > 1
    assert [box for _, box in answers[name]] == boxes
    for (answer, _), theirs in zip(answers[name], recorded, strict=True):
        np.testing.assert_allclose(answer[::STEP, ::STEP], theirs["probabilities"], atol=1e-4)
        assert abs(int((answer > 0.5).sum()) - theirs["area"]) <= 2


def test_the_cases_hold_an_object_that_is_lost_while_zoomed_in():
    recorded = ORIGINAL["answers"]["is lost and found"]
    assert any(r["area"] == 0 and r["box"] is not None for r in recorded[:-1])


def test_clicks_and_boxes_compile_nothing_new(played):
    assert played[1] == [1, 1, 1]


def test_images_of_other_sizes_compile_nothing_new(played):
    predictor = RitmPredictor(Ritm(TINY, random_params(TINY)), ZoomIn(**ZOOM))
    before = [function._cache_size() for function in JITTED]
    predictor.set_image(photo()[:81, :127])
    answer = predictor.predict([(3, 4)], [1])
    assert answer.shape == (81, 127)
    assert [function._cache_size() for function in JITTED] == before


def test_arrays_have_few_sides():
    assert [padded_side(n) for n in (1, 128, 129, 400, 600, 1024, 1025, 3000)] == [
        128, 128, 192, 416, 608, 1024, 1280, 3072,
    ]  # fmt: skip


def test_resizing_aligns_corners_as_pytorch():
    random = np.random.default_rng(0)
    for old, new in (((5, 9), (13, 4)), ((7, 3), (7, 11)), ((1, 6), (4, 1))):
        x = np.full((1, 8, 12, 2), 99, np.float32)
        x[0, : old[0], : old[1]] = random.normal(size=(*old, 2))
        theirs = torch.nn.functional.interpolate(
            torch.from_numpy(x[:, : old[0], : old[1]].transpose(0, 3, 1, 2).copy()),
            new,
            mode="bilinear",
            align_corners=True,
        )
        sizes = np.array([old]), np.array([new])
        ours = resize(x, *sizes, (16, 16))[0, : new[0], : new[1]]
        np.testing.assert_allclose(ours, theirs[0].permute(1, 2, 0), atol=1e-6)
        rows, columns = (aligned_positions(new[i], sizes[0][0, i], sizes[1][0, i]) for i in range(2))
        np.testing.assert_allclose(sample(x[0], rows, columns, np.array(old)), ours, atol=1e-6)


def test_what_is_image_is_told_from_what_is_not():
    mask = inside(np.array([[2, 3], [1, 5]]), (4, 5))[..., 0]
    assert mask.sum((1, 2)).tolist() == [6, 5]
    assert mask[0, 1, 2]
    assert not mask[0, 2, 2]
    assert not mask[0, 1, 3]


def test_clicks_are_disks_of_their_kind():
    points = np.array([[[4, 3], [4.5, 20.25], [-1, 8], [-1, -1], [9, 9]]], np.float32)
    labels = np.array([[1, 0, 1, 1, PAD]])
    maps = np.asarray(click_disks(points, labels, 5.0, (20, 14)))[0]
    y, x = np.mgrid[:20, :14]
    near = [(x - px) ** 2 + (y - py) ** 2 <= 25 for px, py in points[0]]
    np.testing.assert_array_equal(maps[..., 0], near[0] | near[2])
    np.testing.assert_array_equal(maps[..., 1], near[1])
    assert near[3].any()  # and still it is not drawn


def test_a_box_is_enlarged_cut_off_and_of_a_least_size():
    mask = np.zeros((300, 400), bool)
    mask[100:200, 150:250] = True
    none = np.zeros((0, 2), int)
    assert ZoomIn(min_side=10).find_box(mask, none) == Box(80, 220, 130, 270)  # 149.5 +- 70, rounded to even
    assert ZoomIn(min_side=240).find_box(mask, none) == Box(30, 270, 80, 320)
    assert ZoomIn(min_side=10).find_box(mask, np.array([[390, 299]])) == Box(60, 299, 101, 399)
    assert not mask[299, 390]  # the caller's mask is as it was


def test_a_box_stays_until_a_click_leaves_it_or_another_is_wanted_much_more():
    zoom, here = ZoomIn(), Box(10, 110, 10, 110)
    near, far, inner, border = Box(20, 120, 10, 110), Box(80, 180, 10, 110), np.array([[50, 60]]), np.array([[110, 60]])
    assert zoom.choose(near, None, inner) == near
    assert zoom.choose(near, here, inner) == here
    assert zoom.choose(far, here, inner) == far
    assert zoom.choose(near, here, border) == near
    assert overlap(here, far) == pytest.approx(31 / 171)
    assert overlap(here, Box(200, 210, 10, 110)) == 0


def test_the_longer_side_is_what_the_network_sees():
    assert ZoomIn().seen_size(Box(0, 199, 100, 600)) == (160, 400)
    assert ZoomIn(side=600).seen_size(Box(0, 99, 0, 49)) == (600, 300)
    assert ZoomIn().seen_size(Box(0, 0, 0, 999)) == (1, 400)


@pytest.mark.parametrize(
    ("name", "parameters", "statistics"),
    [("hrnet18s", 4_220_047, 17_544), ("hrnet18", 10_032_019, 35_884), ("hrnet32", 30_951_363, 61_120)],
)
def test_exact_parameter_counts_of_the_original(name, parameters, statistics):
    shapes = expected_shapes(RITM_SIZES[name])
    running = {path for path in shapes if path.endswith(("/mean", "/var"))}
    assert sum(int(np.prod(shapes[path])) for path in running) == statistics
    assert sum(int(np.prod(shape)) for path, shape in shapes.items() if path not in running) == parameters


def test_every_published_name_is_there():
    names = foreign_shapes(RITM_SIZES["hrnet32"], "published")
    assert len(names) == 1895 - 314  # each norm's counter of batches is left out
    head = "feature_extractor.ocr_distri_head"
    for name, shape in {
        "maps_transform.0.weight": (16, 3, 1, 1),
        "maps_transform.3.scale": (1,),
        "feature_extractor.layer1.0.downsample.1.running_var": (256,),
        "feature_extractor.transition3.3.0.0.weight": (256, 128, 3, 3),
        "feature_extractor.stage4.2.branches.3.1.bn2.weight": (256,),
        "feature_extractor.stage4.0.fuse_layers.3.0.2.0.weight": (256, 32, 3, 3),
        f"{head}.object_context_block.f_pixel.3.0.bias": (128,),
        f"{head}.conv_bn_dropout.0.weight": (256, 512, 1, 1),
        "feature_extractor.aux_head.3.bias": (1,),
    }.items():
        assert names[name] == shape


def test_a_published_checkpoint_is_read_written_as_ours_and_read_again(tiny, tmp_path):
    torch.save(published(tiny, TINY), tmp_path / "tiny.pth")
    first = load_ritm(tmp_path / "tiny.pth")
    assert dataclasses.replace(first.config, name="tiny") == TINY
    save_checkpoint(tmp_path / "tiny.safetensors", first.params, first.config)
    second = load_ritm(tmp_path / "tiny.safetensors")
    assert second.config == first.config
    for params in (first.params, second.params):
        jax.tree.map(np.testing.assert_array_equal, params, tiny)
    assert [file.name for file in tmp_path.iterdir() if file.suffix == ".tmp"] == []


def test_the_command_converts_once_and_overwrites_when_asked(tiny, tmp_path, capsys):
    torch.save(published(tiny, TINY), tmp_path / "tiny.pth")
    command = ["convert", str(tmp_path / "tiny.pth"), str(tmp_path / "new" / "tiny.safetensors")]
    assert main(command) == 0
    assert main(command) == 2
    assert "exists" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 0
    assert main([*command[:2], str(tmp_path / "tiny.pt")]) == 2
    assert "*.safetensors" in capsys.readouterr().err
    jax.tree.map(np.testing.assert_array_equal, load_ritm(tmp_path / "new" / "tiny.safetensors").params, tiny)


def test_published_configs_are_known_by_name():
    for config in RITM_SIZES.values():
        assert config_from_published({"class": "a.HRNetModel", "params": arguments(config)}, "it") == config
    baseline = dataclasses.replace(HRNET18, previous_mask=False)
    assert config_from_published({"class": "HRNetModel", "params": arguments(baseline)}, "it") == baseline


def test_all_tensors_that_do_not_fit_are_named_at_once(tiny):
    state = state_from_params(tiny, TINY, "published")
    del state["maps_transform.0.bias"]
    state["feature_extractor.more"] = np.zeros(2)
    state["feature_extractor.conv1.weight"] = np.zeros((64, 4, 3, 3))
    with pytest.raises(ValueError, match=r"it does not fit model 'tiny'") as error:
        params_from_state(state, TINY, "published", "it")
    for part in ("missing maps_transform.0.bias (16,)", "extra feature_extractor.more (2,)", "has shape (64, 4, 3, 3)"):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": 1}, "'config' and 'state_dict'.*found keys"),
        ([1, 2], "one model.*a list of 2"),
        ({"state_dict": {"a": 1}, "config": {}}, "map names to tensors"),
        ({"state_dict": {}, "config": {"class": 3}}, "'class' and 'params'"),
        ({"state_dict": {}, "config": {"class": "x.DeeplabModel", "params": {}}}, "class DeeplabModel.*use_rgb_conv"),
        ({"state_dict": {}, "config": {"class": "HRNetModel", "params": arguments(TINY)}}, "missing maps_transform"),
    ],
)
def test_other_pytorch_files_are_told_apart(content, message, tmp_path):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=f"(?s){message}"):
        load_ritm(tmp_path / "other.pth")


class Malicious:
    def __reduce__(self):
        return exec, ("raise SystemExit('code was run')",)


def test_no_code_of_a_checkpoint_is_run(tiny, tmp_path):
    torch.save(published(tiny, TINY) | {"more": Malicious()}, tmp_path / "bad.pth")
    with pytest.raises(ValueError, match="tensors alone"):
        load_ritm(tmp_path / "bad.pth")


def test_files_that_are_no_ritm_checkpoints_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_ritm(tmp_path / "nowhere.pth")
    (tmp_path / "text").write_text("no model at all")
    with pytest.raises(ValueError, match="is none"):
        load_ritm(tmp_path / "text")
    with pytest.raises(ValueError, match="a checkpoint of Segment Anything"):
        load_ritm(TRAINED)


def test_a_config_survives_json_and_names_what_it_does_not_know():
    assert RitmConfig.from_json(TINY.to_json()) == TINY
    with pytest.raises(ValueError, match="depth"):
        RitmConfig.from_json('{"depth": 3}')
    with pytest.raises(UserError, match=r"RitmConfig.*width"):
        RitmConfig.from_json('{"width": "wide"}')
    with pytest.raises(ValueError, match="width"):
        RitmConfig(width=0)


def test_bad_clicks_are_explained(tiny):
    predictor = RitmPredictor(Ritm(TINY, tiny))
    with pytest.raises(RuntimeError, match="set_image"):
        predictor.predict([(1, 1)], [1])
    predictor.set_image(photo())
    for points, labels, message in (
        ([], [], "N > 0 points"),
        ([(1, 1)], [1, 0], "as many labels"),
        ([(1, 1)], [2], "labels 1"),
        ([(128, 1)], [1], "128 x 96"),
    ):
        with pytest.raises(ValueError, match=message):
            predictor.predict(points, labels)


def test_a_prediction_ends_before_another_thread_sets_an_image(tiny, monkeypatch):
    predictor = RitmPredictor(Ritm(TINY, tiny))
    predictor.set_image(photo())
    begun, mixed = threading.Event(), []
    crop = predictor_module.crop_part

    def slow_crop(image, *rest, **options):
        begun.set()
        setter.join(0.5)
        mixed.append(not setter.is_alive())
        return crop(image, *rest, **options)

    monkeypatch.setattr(predictor_module, "crop_part", slow_crop)
    setter = threading.Thread(target=lambda: begun.wait() and predictor.set_image(photo()[:, :40]))
    setter.start()
    assert predictor.predict([(100, 20)], [1]).shape == photo().shape[:2]
    setter.join()
    assert mixed == [False]
    assert predictor.predict([(10, 20)], [1]).shape == (96, 40)


def test_an_evaluation_takes_ritm_by_its_path(tiny, tmp_path, played):
    save_checkpoint(tmp_path / "some.safetensors", tiny, TINY)
    segmenter = open_segmenter(f"ritm:{tmp_path / 'some.safetensors'}", "tiny")
    assert segmenter.name == "ritm some"
    assert segmenter.identity == RitmSegmenter(Ritm(TINY, tiny)).identity
    assert segmenter.identity != RitmSegmenter(Ritm(TINY, random_params(TINY, 1))).identity
    assert segmenter.identity != RitmSegmenter(Ritm(TINY, tiny), zoom=ZoomIn(side=600)).identity


def test_a_session_segments_objects_side_by_side(played):
    seed, weight, threshold = OBJECTS["moves"]
    model = Ritm(TINY, random_params(TINY, seed, weight, threshold))
    session = RitmSegmenter(model, zoom=ZoomIn(**ZOOM)).open_session(photo())
    objects = [Clicks([], []), Clicks([(100, 20)], [1])]
    for n in range(3):
        point, label = CLICKS[n]
        objects[0].points.append(point)
        objects[0].labels.append(label)
        first, second = session.segment(objects)
        np.testing.assert_array_equal(first[0], played[0]["moves"][n][0] > 0.49)
        if n == 0:
            before = second
    assert second is before  # it got no further click
