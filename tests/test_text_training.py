"""The text prompt is learned from CLIP's embeddings of masks: in the step, on any devices, and in a whole run."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from cases.models import SMALL, WITH_TEXT
from cases.training import make_batch, make_config
from sam_jax import Clip, Prompt, SamPredictor, load_model
from sam_jax.checkpoints import load_checkpoint, save_checkpoint
from sam_jax.clip.config import ClipConfig
from sam_jax.clip.network import init_clip_params
from sam_jax.config import FinetuneConfig, ParallelConfig, PromptConfig, TextConfig
from sam_jax.modeling import init_params
from sam_jax.modeling.prompt_encoder import init_text_projection
from sam_jax.ops.transforms import as_rgb
from sam_jax.prompting.text import object_views
from sam_jax.training.export import load_run
from sam_jax.training.loop import compile_program, train
from sam_jax.training.sam import sam_task
from sam_jax.training.step import model_params
from sam_jax.training.text import with_text_prompt
from sam_jax.types import PAD

CLIP = ClipConfig("small", 32, 8, 32, 1, 1, 32, 1, 1, 77, 49408, 32)


@pytest.fixture(scope="module")
def clip_params():
    return jax.device_get(init_clip_params(CLIP, jax.random.key(1)))


def text_config(**changes):
    return make_config(
        model=WITH_TEXT,
        text=TextConfig("unused"),
        prompts=PromptConfig(point_rounds=0, refine_rounds=1),
        **changes,
    )


def test_objects_are_seen_in_squares_up_to_twice_their_size_with_and_without_what_is_around():
    batch = make_batch()
    views = jax.jit(functools.partial(object_views, clip=CLIP, config=TextConfig("unused")))
    covered, hidden = [], []
    for seed in range(12):
        images, patches, has_text = views(jax.random.key(seed), batch)
        assert images.shape == (2, 3, 32, 32, 3)
        assert has_text.all()
        # The rectangles have one colour each; it fills from all to a quarter of the square's longer side squared.
        seen = np.asarray((images != 0).any(-1).mean((-1, -2)))[batch.valid]
        covered.append(np.asarray(patches.mean((-1, -2)))[batch.valid])
        hidden.append(seen < 0.99)
    aspect = (batch.boxes[..., 2:] - batch.boxes[..., :2] + 1)[batch.valid]
    most = aspect.min(-1) / aspect.max(-1)
    assert (np.array(covered) <= np.ceil(most * 4) / 4 + 1e-6).all()
    assert np.array(covered).min() <= 0.25
    assert 0.2 < np.mean(hidden) < 0.95
    none = functools.partial(object_views, clip=CLIP, config=TextConfig("unused", probability=0.0))
    assert not none(jax.random.key(0), batch)[2].any()


@pytest.mark.slow  # compiles three programs
def test_a_step_learns_the_projection_leaves_clip_alone_and_is_the_same_over_a_mesh_and_with_pmap(clip_params):
    params = init_params(WITH_TEXT, jax.random.key(0)) | {"clip": {"visual": clip_params["visual"]}}
    losses = []
    for parallel in (ParallelConfig("mesh", 1, 2), ParallelConfig("pmap", 2)):
        config = text_config(parallel=parallel)
        program = compile_program(sam_task(config, params, CLIP), params)
        state, metrics = program.step(program.init(params), make_batch(), jax.random.key(3))
        state = jax.device_get(program.whole(state))
        jax.tree.map(np.testing.assert_array_equal, state.frozen["clip"]["visual"], dict(clip_params["visual"]))
        assert "clip" not in state.params
        assert model_params(state, config).keys() == params.keys() - {"clip"}
        learned = state.params["prompt_encoder"]["text_projection"]["kernel"]
        assert np.abs(learned - params["prompt_encoder"]["text_projection"]["kernel"]).max() > 1e-5
        losses.append(np.asarray(metrics["loss"]))
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)
    _, labels, _, _ = program.preview(program.init(params), make_batch(), jax.random.key(3))
    assert (np.asarray(labels)[:, :, :2] == PAD).all()  # the text is the first prompt


@pytest.mark.slow
def test_a_run_gives_a_model_without_texts_a_text_prompt(run_config, clip_params, tmp_path):
    save_checkpoint(tmp_path / "clip.safetensors", clip_params, CLIP)
    save_checkpoint(tmp_path / "start.safetensors", init_params(SMALL, jax.random.key(0)), SMALL)
    config = dataclasses.replace(
        run_config,
        steps=2,
        init_from=str(tmp_path / "start.safetensors"),
        text=TextConfig(str(tmp_path / "clip.safetensors"), probability=0.5),
        prompts=PromptConfig(point_rounds=0, refine_rounds=0),
    )
    path = train(config).path
    params, model = load_checkpoint(path)
    assert model == WITH_TEXT
    assert params.keys() == {"image_encoder", "prompt_encoder", "mask_decoder"}
    fresh = init_text_projection(WITH_TEXT, jax.random.key(config.seed))["kernel"]
    assert 1e-5 < np.abs(params["prompt_encoder"]["text_projection"]["kernel"] - fresh).max() < 0.1
    exported, model, _ = load_run(config.out)
    assert model == WITH_TEXT
    jax.tree.map(np.testing.assert_array_equal, exported, params)
    predictor = SamPredictor(load_model(path), Clip(CLIP, clip_params))
    predictor.set_image(as_rgb(np.full((40, 60, 3), 100, np.uint8)))
    assert predictor.predict_prompts([Prompt(text="a bright rectangle")]).masks.shape == (1, 3, 40, 60)
    assert train(dataclasses.replace(config, steps=3), resume=True).path == path


def test_settings_that_do_not_go_together_are_refused(run_config, clip_params, tmp_path):
    save_checkpoint(tmp_path / "clip.safetensors", clip_params, CLIP)
    text = TextConfig(str(tmp_path / "clip.safetensors"))
    with pytest.raises(ValueError, match="cache-embeddings"):
        train(dataclasses.replace(run_config, text=text, finetune=FinetuneConfig(r"decoder", cache_embeddings=True)))
    with pytest.raises(ValueError, match="expected expansion to be two numbers in order"):
        train(dataclasses.replace(run_config, text=dataclasses.replace(text, expansion=(2.0, 1.0))))
    with pytest.raises(ValueError, match=r"has a text prompt for CLIP 'small', 32 wide, and text\.clip is 'other'"):
        with_text_prompt(WITH_TEXT, dataclasses.replace(CLIP, name="other"))
    with pytest.raises(ValueError, match="clip_b32, clip_b16"):
        train(dataclasses.replace(run_config, text=TextConfig("clip_x")))
