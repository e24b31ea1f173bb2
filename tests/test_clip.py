"""CLIP's towers against transformers, its checkpoints, and its tokens against the official tokenizer's."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
import transformers

from cases.models import SMALL_CLIP
from sam_jax.checkpoints import CLIP, SAM, expected_shapes, load_checkpoint, save_checkpoint, state_from_params
from sam_jax.checkpoints.clip import config_from_huggingface
from sam_jax.clip.config import CLIP_L14_336, CLIP_SIZES, ClipConfig
from sam_jax.clip.network import embed_images, embed_tokens, init_clip_params
from sam_jax.clip.tokenizer import tokenize
from sam_jax.commands.main import main

# The four published structures, small: patches an image has, depths and widths of the towers that differ.


STRUCTURES = {
    "clip_b32": SMALL_CLIP,
    "clip_b16": dataclasses.replace(SMALL_CLIP, patch_size=4),
    "clip_l14": dataclasses.replace(SMALL_CLIP, image_size=28, patch_size=7, vision_depth=3, embedding_dim=48),
    "clip_l14_336": dataclasses.replace(SMALL_CLIP, image_size=42, patch_size=7, vision_depth=3, embedding_dim=48),
}
TEXTS = ["a wheel", "a photo of the red car on the left"]
OFFICIAL = json.loads(Path(__file__).parent.joinpath("data", "clip_tokens.json").read_text())


def reference(config: ClipConfig) -> transformers.CLIPModel:
    """Random weights, large enough that every part shows."""
    torch.manual_seed(0)
    sizes = transformers.CLIPConfig(
        vision_config={
            "hidden_size": config.vision_dim,
            "intermediate_size": 4 * config.vision_dim,
            "num_hidden_layers": config.vision_depth,
            "num_attention_heads": config.vision_heads,
            "image_size": config.image_size,
            "patch_size": config.patch_size,
            "projection_dim": config.embedding_dim,
        },
        text_config={
            "hidden_size": config.text_dim,
            "intermediate_size": 4 * config.text_dim,
            "num_hidden_layers": config.text_depth,
            "num_attention_heads": config.text_heads,
            "projection_dim": config.embedding_dim,
            "eos_token_id": 49407,
            "bos_token_id": 49406,
        },
        projection_dim=config.embedding_dim,
    )
    model = transformers.CLIPModel(sizes).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith("bias") or value.ndim == 1:
                value.add_(0.1 * torch.randn_like(value))
    return model


def assert_same_embeddings(config: ClipConfig, folder: Path) -> None:
    """Asserts that a Hugging Face folder, read by us, gives the embeddings that transformers gives."""
    theirs = reference(config)
    theirs.save_pretrained(folder)
    params, read = load_checkpoint(folder, CLIP)
    assert dataclasses.replace(read, name=config.name) == config
    images = np.random.default_rng(0).normal(size=(2, config.image_size, config.image_size, 3)).astype(np.float32)
    tokens = tokenize(TEXTS)
    with torch.no_grad():
        both = theirs(input_ids=torch.tensor(tokens).long(), pixel_values=torch.tensor(images).permute(0, 3, 1, 2))
    ours = jax.jit(embed_images, static_argnums=2)(params, images, config)
    np.testing.assert_allclose(ours, both.image_embeds.numpy(), atol=2e-6)
    # Padding behind the end is seen by nothing: a text may be cut to its own length.
    ours = jax.jit(embed_tokens, static_argnums=2)(params, tokens[:, :12], config)
    np.testing.assert_allclose(ours, both.text_embeds.numpy(), atol=2e-6)


@pytest.mark.parametrize("name", CLIP_SIZES)
def test_embeddings_are_those_of_transformers(name, tmp_path):
    assert_same_embeddings(STRUCTURES[name], tmp_path)


@pytest.mark.slow
def test_embeddings_of_the_published_size_are_those_of_transformers(tmp_path):
    assert_same_embeddings(CLIP_SIZES["clip_b32"], tmp_path)


@pytest.mark.parametrize(
    ("name", "count"),
    [("clip_b32", 151_277_313), ("clip_b16", 149_620_737), ("clip_l14", 427_616_513), ("clip_l14_336", 427_944_193)],
)
def test_published_sizes_have_their_parameters(name, count):
    assert sum(int(np.prod(shape)) for shape in expected_shapes(CLIP_SIZES[name]).values()) == count


@pytest.fixture(scope="module")
def params():
    return init_clip_params(SMALL_CLIP, jax.random.key(0))


class _Towers(torch.nn.Module):
    """A module whose submodules and tensors carry given names."""

    def __init__(self, state: dict[str, np.ndarray]) -> None:
        super().__init__()
        for name, value in state.items():
            *path, last = name.split(".")
            module = self
            for part in path:
                if part not in module._modules:
                    module.add_module(part, torch.nn.Module())
                module = module._modules[part]
            module.register_buffer(last, torch.tensor(value).half())
        self.register_buffer("input_resolution", torch.tensor(SMALL_CLIP.image_size))

    def forward(self) -> int:
        return 1


def test_an_openai_archive_is_read_without_running_it(params, tmp_path, monkeypatch, capsys):
    state = state_from_params(params, SMALL_CLIP, "openai")
    for name in ("visual.transformer.resblocks.1.attn.in_proj_weight", "token_embedding.weight", "ln_final.weight"):
        assert name in state  # OpenAI's names
    torch.jit.save(torch.jit.script(_Towers(state)), tmp_path / "clip.pt")
    torch.save({name: torch.tensor(value) for name, value in state.items()}, tmp_path / "state.pt")
    loaded, config = load_checkpoint(tmp_path / "state.pt", CLIP)
    assert dataclasses.replace(config, name="small") == SMALL_CLIP
    jax.tree.map(np.testing.assert_array_equal, loaded, dict(params))
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    loaded, config = load_checkpoint(tmp_path / "clip.pt", CLIP)
    assert dataclasses.replace(config, name="small") == SMALL_CLIP
    half = jax.tree.map(lambda x: np.asarray(x, np.float16).astype(np.float32), dict(params))
    jax.tree.map(np.testing.assert_array_equal, loaded, half)
    monkeypatch.undo()
    # The command knows by its content that it is a CLIP, which only our format holds.
    assert main(["convert", str(tmp_path / "clip.pt"), str(tmp_path / "clip.safetensors")]) == 0
    jax.tree.map(np.testing.assert_array_equal, load_checkpoint(tmp_path / "clip.safetensors", CLIP).params, half)
    assert main(["convert", str(tmp_path / "clip.pt"), str(tmp_path / "folder")]) == 2
    assert "*.safetensors for a CLIP" in capsys.readouterr().err


def test_ours_is_written_and_read_and_not_taken_for_a_sam(params, tmp_path):
    save_checkpoint(tmp_path / "clip.safetensors", params, SMALL_CLIP)
    loaded, config = load_checkpoint(tmp_path / "clip.safetensors", CLIP)
    assert config == SMALL_CLIP
    jax.tree.map(np.testing.assert_array_equal, loaded, dict(params))
    with pytest.raises(ValueError, match=r"expected a checkpoint of Segment Anything, .* is a CLIP"):
        load_checkpoint(tmp_path / "clip.safetensors", SAM)
    with pytest.raises(ValueError, match="not the one given"):
        load_checkpoint(tmp_path / "clip.safetensors", CLIP, CLIP_L14_336)
    with pytest.raises(FileNotFoundError):
        load_checkpoint(tmp_path / "nowhere.safetensors", CLIP)


class _Code:
    def __reduce__(self):
        return __import__, ("antigravity_that_does_not_exist",)


def test_bad_checkpoints_are_called_so(params, tmp_path):
    state = state_from_params(params, SMALL_CLIP, "openai")
    del state["ln_final.weight"]
    torch.save({name: torch.tensor(value) for name, value in state.items()}, tmp_path / "state.pt")
    with pytest.raises(ValueError, match=r"missing ln_final\.weight"):
        load_checkpoint(tmp_path / "state.pt", CLIP)
    torch.save({"visual.layer1.0.conv1.weight": torch.zeros(1)}, tmp_path / "resnet.pt")
    with pytest.raises(ValueError, match="ResNet"):
        load_checkpoint(tmp_path / "resnet.pt", CLIP)
    torch.save({"a": _Code()}, tmp_path / "code.pt")
    with pytest.raises(ValueError, match="tensors alone"):
        load_checkpoint(tmp_path / "code.pt", CLIP)
    import pickle
    import zipfile

    with zipfile.ZipFile(tmp_path / "script.pt", "w") as archive:
        archive.writestr("x/code/a.py", "")
        archive.writestr("x/data.pkl", pickle.dumps(_Code(), protocol=2))
    with pytest.raises(ValueError, match="no tensor"):
        load_checkpoint(tmp_path / "script.pt", CLIP)
    with pytest.raises(ValueError, match=r"vision_config\.hidden_act"):
        config_from_huggingface({"model_type": "clip", "vision_config": {"hidden_act": "gelu"}})
    with pytest.raises(ValueError, match=r"config\.json: expected a JSON object under text_config"):
        config_from_huggingface({"model_type": "clip", "text_config": [1]})


def test_what_a_processor_says_of_colours_is_taken_and_other_settings_are_refused():
    published = {  # as OpenAI's folders have it
        **{"do_center_crop": True, "do_normalize": True, "do_resize": True, "resample": 3},
        **{"crop_size": 224, "size": 224, "feature_extractor_type": "CLIPFeatureExtractor"},
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }
    assert config_from_huggingface({"model_type": "clip"}, published).name == "clip_b32"
    half = published | {"image_mean": [0.5] * 3, "size": {"shortest_edge": 224}}
    assert config_from_huggingface({"model_type": "clip"}, half).pixel_mean == (127.5,) * 3
    for change in ({"do_center_crop": False}, {"size": 336}, {"resample": 2}, {"crop_size": {"height": 9, "width": 9}}):
        (name,) = change
        with pytest.raises(ValueError, match=name):
            config_from_huggingface({"model_type": "clip"}, published | change)


def test_a_mask_of_everything_changes_nothing_and_one_of_a_part_shuts_out_the_rest(params):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(2, 32, 32, 3)).astype(np.float32)
    embed = jax.jit(embed_images, static_argnums=2)
    plain = embed(params, images, SMALL_CLIP)
    np.testing.assert_allclose(embed(params, images, SMALL_CLIP, np.ones((2, 4, 4), bool)), plain, atol=1e-6)
    patches = np.zeros((2, 4, 4), bool)
    patches[:, :2] = True
    assert np.abs(embed(params, images, SMALL_CLIP, patches) - plain).max() > 1e-3
    # With one layer, which is then the last, patches outside of the mask reach the output token by no way.
    shallow = dataclasses.replace(SMALL_CLIP, vision_depth=1)
    params = init_clip_params(shallow, jax.random.key(0))
    changed = images.copy()
    changed[:, 16:] += 1.0
    np.testing.assert_array_equal(embed(params, images, shallow, patches), embed(params, changed, shallow, patches))


@pytest.mark.parametrize("text", OFFICIAL)
def test_tokens_are_the_official_ones(text):
    tokens = tokenize([text])[0].tolist()
    assert tokens == OFFICIAL[text] + [0] * (77 - len(OFFICIAL[text]))


def test_bad_texts_are_called_so():
    for text in ("", " \n\t", "&nbsp;"):
        with pytest.raises(ValueError, match="says what to look for"):
            tokenize(["a cat", text])
    with pytest.raises(ValueError, match="at most 75 tokens, CLIP's limit, got 76"):
        tokenize(["cat " * 76])
    assert tokenize(["cat " * 75]).argmax() == 76
    with pytest.raises(TypeError, match="in brackets"):
        tokenize("a cat")
    with pytest.raises(TypeError, match="NoneType"):
        tokenize([None])
