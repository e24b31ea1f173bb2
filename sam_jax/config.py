"""Frozen dataclasses that describe a model and a training run."""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from sam_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class JsonConfig:
    """The base of the configs that are stored beside params as JSON, with configs among their fields."""

    def __post_init__(self) -> None:
        # JSON gives lists; tuples keep the config hashable, which jit's static arguments need.
        for field in dataclasses.fields(self):
            if isinstance(value := getattr(self, field.name), list):
                object.__setattr__(self, field.name, tuple(value))

    def to_fields(self) -> dict[str, Any]:
        """Returns the fields by name, as JSON holds them."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value.to_fields() if isinstance(value, JsonConfig) else value for name, value in fields.items()}

    def to_json(self) -> str:
        """Returns the fields as the text of a JSON object."""
        return json.dumps(self.to_fields())

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Self:
        """Reads what `to_fields` gave, from this version or from an earlier one.

        Raises:
            UserError: not a mapping, fields that this version does not know, or values that do not go together.
        """
        if not isinstance(fields, Mapping):
            raise UserError(f"expected a JSON object with fields of {cls.__name__}, got {type(fields).__name__}")
        if unknown := sorted(fields.keys() - {field.name for field in dataclasses.fields(cls)}):
            raise UserError(f"expected a JSON object with fields of {cls.__name__}, got unknown {unknown}")
        values = dict(fields)
        for name, kind in typing.get_type_hints(cls).items():
            if name in values and isinstance(kind, type) and issubclass(kind, JsonConfig):
                values[name] = kind.from_fields(values[name])
        try:
            return cls(**values)
        except TypeError as error:  # a value of another type than its field
            raise UserError(f"expected a JSON object with fields of {cls.__name__}, got {values}: {error}") from error

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Reads what `to_json` wrote.

        Raises:
            UserError: not JSON; and as `from_fields`.
        """
        try:
            fields = json.loads(text)
        except json.JSONDecodeError as error:
            raise UserError(f"expected the JSON of a {cls.__name__}, got {text[:80]!r}") from error
        return cls.from_fields(fields)


@dataclasses.dataclass(frozen=True)
class ModelConfig(JsonConfig):
    """The base of the configs that define a model of one of the families in `sam_jax.checkpoints`."""

    name: str


def check_multiple(complaint: str, total: int, part: int) -> None:
    """Refuses a config in which `total` is not a multiple of `part`, or one of them not positive."""
    if part <= 0 or total <= 0 or total % part:
        raise UserError(f"{complaint}; got {total} and {part}")


@dataclasses.dataclass(frozen=True)
class EncoderConfig(JsonConfig):
    """The base of the image encoders' configs; each encoder in `sam_jax.modeling.encoders` has a class of its own.

    Attributes:
        kind: name of the encoder in files.
    """

    kind: ClassVar[str] = ""
    image_size: int = 1024  # side of the square input frame, pixels
    pixel_mean: tuple[float, float, float] = (123.675, 116.28, 103.53)  # RGB, 0-255
    pixel_std: tuple[float, float, float] = (58.395, 57.12, 57.375)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_multiple("image_size must be a multiple of the encoder's stride", self.image_size, self.stride)

    @property
    def stride(self) -> int:
        """Pixels of the input frame per cell of the encoder's last map."""
        raise NotImplementedError

    @property
    def features(self) -> int:
        """Channels of the encoder's last map."""
        raise NotImplementedError

    @property
    def grid_size(self) -> int:
        """Side of the encoder's last map, cells."""
        return self.image_size // self.stride

    def to_fields(self) -> dict[str, Any]:
        """Returns the fields, and the kind."""
        return {"kind": self.kind} | super().to_fields()

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Self:
        """Reads what `to_fields` gave; of this class itself, any encoder's, which `kind` tells.

        Raises:
            UserError: of a kind that this version does not know; and as `JsonConfig.from_fields`.
        """
        classes: dict[str, type[Self]] = {known.kind: known for known in (cls, *cls.__subclasses__()) if known.kind}
        kind = fields.get("kind") if isinstance(fields, Mapping) else None
        if kind not in classes:
            raise UserError(f"expected an image encoder of kind {' or '.join(sorted(classes))}, got {kind!r}")
        own = {name: value for name, value in fields.items() if name != "kind"}
        return super(EncoderConfig, classes[kind]).from_fields(own)


@dataclasses.dataclass(frozen=True)
class ViTConfig(EncoderConfig):
    """A plain ViT with windowed and global attention. The defaults are ViT-B.

    Reference: Kirillov et al. 2023, section A; Li et al. 2022 (ViTDet).
    """

    kind: ClassVar[str] = "vit"
    patch_size: int = 16  # side of one patch, pixels
    dim: int = 768
    depth: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0
    window_size: int = 14  # side of an attention window, patches
    global_attention_blocks: tuple[int, ...] = (2, 5, 8, 11)  # 0-based

    def __post_init__(self) -> None:
        super().__post_init__()
        check_multiple("the encoder's dim must be a multiple of its heads", self.dim, self.heads)
        bad = [i for i in self.global_attention_blocks if not 0 <= i < self.depth]
        if bad:
            raise UserError(f"global_attention_blocks must lie in 0..{self.depth - 1} (depth - 1); got {bad}")

    @property
    def stride(self) -> int:
        return self.patch_size

    @property
    def features(self) -> int:
        return self.dim


@dataclasses.dataclass(frozen=True)
class SamConfig(ModelConfig):
    """The numbers that define one Segment Anything model.

    The defaults are ViT-B of the paper; `SIZES` holds every published size and our own `tiny`.

    Reference: Kirillov et al. 2023, sections 3 and A.
    """

    name: str = "vit_b"
    encoder: EncoderConfig = ViTConfig()
    prompt_dim: int = 256  # width of the image embedding, the prompts and the decoder
    mask_channels: int = 16  # hidden channels of the mask prompt's convolutions
    decoder_depth: int = 2
    decoder_heads: int = 8
    decoder_mlp_dim: int = 2048
    decoder_attention_downsample: int = 2  # width of cross-attention = prompt_dim / this
    num_multimask_outputs: int = 3
    iou_head_depth: int = 3
    iou_head_hidden_dim: int = 256
    text_dim: int = 0  # width of the CLIP embedding that a text prompt is; 0: the model has no text prompt
    text_encoder: str = ""  # name of the CLIP that the text prompt was trained with

    def __post_init__(self) -> None:
        super().__post_init__()
        check_multiple(
            "prompt_dim must be a multiple of decoder_attention_downsample * decoder_heads",
            self.prompt_dim,
            self.decoder_attention_downsample * self.decoder_heads,
        )
        check_multiple("prompt_dim must be a multiple of 8 (two 2x up-scalings, to /4 and /8)", self.prompt_dim, 8)
        check_multiple("mask_channels must be a multiple of 4", self.mask_channels, 4)
        if self.text_dim < 0 or bool(self.text_dim) != bool(self.text_encoder):
            raise UserError(
                "text_dim and text_encoder go together, the width of an embedding and the name of the CLIP that gives "
                f"it; got {self.text_dim} and {self.text_encoder!r}"
            )

    @property
    def image_size(self) -> int:
        """Side of the square input frame, pixels."""
        return self.encoder.image_size

    @property
    def grid_size(self) -> int:
        """Side of the image embedding, cells."""
        return self.encoder.grid_size

    @property
    def low_res_size(self) -> int:
        """Side of the decoder's logits and of a mask prompt, pixels."""
        return 4 * self.grid_size

    @property
    def num_mask_tokens(self) -> int:
        """Three masks for an ambiguous prompt and one (index 0) for the rest."""
        return self.num_multimask_outputs + 1

    def with_image_size(self, image_size: int) -> SamConfig:
        """Returns the same model for another input frame, `image_size` pixels wide and high."""
        return dataclasses.replace(self, encoder=dataclasses.replace(self.encoder, image_size=image_size))

    def without_text(self) -> SamConfig:
        """The same model without its text prompt, as the official code knows it."""
        return dataclasses.replace(self, text_dim=0, text_encoder="")

    def to_fields(self) -> dict[str, Any]:
        """Returns the fields; a model without a text prompt is written as before there was one."""
        fields = super().to_fields()
        if not self.text_dim:
            del fields["text_dim"], fields["text_encoder"]
        return fields

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Self:
        """As `JsonConfig.from_fields`; old files have the fields of the ViT among the model's own."""
        if isinstance(fields, Mapping) and "encoder" not in fields:
            encoder = {new: fields[old] for old, new in FLAT_ENCODER_FIELDS.items() if old in fields}
            rest = {name: value for name, value in fields.items() if name not in FLAT_ENCODER_FIELDS}
            fields = rest | {"encoder": {"kind": ViTConfig.kind, **encoder}}
        return super().from_fields(fields)


# Fields of the ViT that were the model's own, in their order there, before encoders had configs; and their names now.
FLAT_ENCODER_FIELDS = {
    "image_size": "image_size",
    "patch_size": "patch_size",
    "encoder_dim": "dim",
    "encoder_depth": "depth",
    "encoder_heads": "heads",
    "encoder_mlp_ratio": "mlp_ratio",
    "window_size": "window_size",
    "global_attention_blocks": "global_attention_blocks",
    "pixel_mean": "pixel_mean",
    "pixel_std": "pixel_std",
}


VIT_B = SamConfig()
VIT_L = SamConfig("vit_l", ViTConfig(dim=1024, depth=24, heads=16, global_attention_blocks=(5, 11, 17, 23)))
VIT_H = SamConfig("vit_h", ViTConfig(dim=1280, depth=32, heads=16, global_attention_blocks=(7, 15, 23, 31)))
# Ours, small enough to train on a CPU: patches of 8 pixels keep small regions alive in a frame of 128.
TINY = SamConfig(
    name="tiny",
    encoder=ViTConfig(
        image_size=128, patch_size=8, dim=256, depth=6, heads=4, window_size=8, global_attention_blocks=(2, 5)
    ),
    prompt_dim=128,
    decoder_heads=4,
    decoder_mlp_dim=512,
    iou_head_hidden_dim=128,
)
SIZES: dict[str, SamConfig] = {config.name: config for config in (VIT_B, VIT_L, VIT_H, TINY)}


DataFormat = Literal["auto", "named", "prepared", "sa1b", "coco", "labels", "masks"]
LabelValues = Literal["auto", "instances", "classes"]


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where the images are and how a batch is drawn from them."""

    path: Path | None = None  # folder or file of the data; sam_jax.data.sources lists what is looked for
    datasets: tuple[str, ...] = ("bsds500", "ccp", "coco_small")  # of the named sets in `path` (data.training_sets)
    format: DataFormat = "auto"  # named: see `datasets`
    images: Path | None = None  # folder of the images, where they are not near their annotations
    label_values: LabelValues = "auto"  # what the values of label maps are
    batch_size: int = 8  # images per step, over all devices
    masks_per_image: int = 64  # masks drawn per image; images with fewer are padded
    min_original_area: int = 1  # pixels of the image as given; smaller masks are left out
    min_area: int = 16  # pixels of the input frame that a mask must have left after scaling and cropping
    max_area_fraction: float = 0.9  # masks that cover more of the image are dropped
    scale_range: tuple[float, float] = (1.0, 1.0)  # of the fitted image; above 1 crops (large-scale jitter)
    flip_probability: float = 0.0  # horizontal
    colour_jitter: float = 0.0  # brightness and contrast vary by up to this fraction
    workers: int = 1  # threads that prepare batches, in each process
    worker_processes: int = 0  # that prepare batches; 0: the training process does
    max_bad_fraction: float = 0.01  # of the records may be unusable; they train nothing (a few always may)


@dataclasses.dataclass(frozen=True)
class PromptConfig:
    """The simulated annotator (section A of the paper, "training algorithm")."""

    point_rounds: int = 8  # rounds that add a point from the error region
    refine_rounds: int = 2  # rounds that only feed the logits back: the last one, and others at random places
    box_probability: float = 0.5  # of the first prompt; otherwise it is a point
    box_noise: float = 0.1  # standard deviation, fraction of the box's side
    box_noise_max: float = 20.0  # pixels of a 1024 frame; scaled to the model's


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """The text prompt, learned from what CLIP's image tower makes of the masks (section D.5 of the paper)."""

    clip: str | None = None  # name or path of the CLIP; None: no text prompts are trained
    probability: float = 1.0  # of the first prompt; otherwise it is a point or a box
    expansion: tuple[float, float] = (1.0, 2.0)  # of a mask's box before it is cut out
    hide_probability: float = 0.5  # that what surrounds the object is zeroed


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Weights and shapes of the loss."""

    focal: float = 20.0
    dice: float = 1.0
    iou: float = 1.0
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0
    iou_of_all_masks: bool = False  # learn the predicted IoU of every mask, as SAM 2, and not of the best alone
    size: int = 1024  # side at which logits meet the truth, pixels; the input frame scaled


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW, linear warm-up, step decay, layer-wise decay of the encoder's learning rate."""

    learning_rate: float = 8e-4
    warmup_steps: int = 250
    decay_steps: tuple[int, ...] = (60_000, 86_666)  # the rate is divided by 10 at each
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.1  # matrices only: biases, norms and embeddings are exempt
    layer_decay: float = 0.8
    epsilon: float = 1e-8  # of Adam
    clip_norm: float | None = None  # global gradient norm


@dataclasses.dataclass(frozen=True)
class FinetuneConfig:
    """Which params learn. Names are like image_encoder/blocks_0/attn/qkv/kernel."""

    trainable: str = r""  # regular expression, searched in names; what it does not find stays as it is
    lora_rank: int = 0  # of low-rank adapters (Hu et al. 2021) on the kernels of `lora_targets`; 0: none
    lora_alpha: float = 16.0  # an adapter's product is multiplied by alpha / rank
    lora_targets: str = r"image_encoder/blocks_\d+/attn/(qkv|proj)/kernel$"  # learn through adapters alone
    cache_embeddings: bool = False  # encode each image once, before training; for a frozen encoder


@dataclasses.dataclass(frozen=True)
class ParallelConfig:
    """How a step spreads over devices. The update is the same, but for the draws of dropout and drop path."""

    mode: Literal["mesh", "pmap"] = "mesh"  # one program over a mesh with sharded state, or pmap with a copy on each
    data: int = 0  # devices along which only images are cut; 0: as many as there are
    fsdp: int = 1  # devices along which images, params and optimizer state are cut; mesh only
    coordinator: str | None = None  # host:port of process 0; TPU pods and SLURM jobs are detected without it
    processes: int | None = None  # how many there are, with `coordinator`
    process: int | None = None  # number of this one, from 0, with `coordinator`


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """What every training run says of itself, whatever it trains; a subclass adds the model and its losses."""

    out: Path  # folder of checkpoints, metrics and the exported model
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    parallel: ParallelConfig = ParallelConfig()
    steps: int = 90_000
    seed: int = 0
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the arithmetic; params, norms and losses are float32
    remat: bool = True  # recompute activations in the backward pass, to save memory
    drop_path: float = 0.0
    ema_decay: float | None = None  # also keep an exponential moving average of the params; it is what is exported
    max_skipped: int = 20  # updates in a row without finite gradients, which are left out, before the run stops
    init_from: str | None = None  # name or path of a SAM model whose params start the run
    init_encoder_from: Path | None = None  # masked-autoencoder ViT (He et al. 2021) that starts the image encoder
    log_every: int = 20
    validate_every: int = 1000  # also before the first step and after the last one
    validation_batches: int = 8
    save_every: int = 1000
    keep_checkpoints: int = 2  # the last ones; the best by validation is kept besides
    profile_steps: tuple[int, int] | None = None  # first and last step of a profiler trace, written to out/profile

    def __post_init__(self) -> None:
        if self.profile_steps is not None and not 1 <= self.profile_steps[0] <= self.profile_steps[1]:
            first, last = self.profile_steps
            raise UserError(f"expected profile-steps FIRST LAST, from 1 on and in order, got {first} and {last}")


@dataclasses.dataclass(frozen=True)
class TrainConfig(RunConfig):
    """One training run of a SAM."""

    model: SamConfig = VIT_B
    prompts: PromptConfig = PromptConfig()
    text: TextConfig = TextConfig()
    loss: LossConfig = LossConfig()
    drop_path: float = 0.4
    decoder_dropout: float = 0.1
    accumulate: int = 1  # parts that the batch is cut into and worked through one after the other, to save memory
    model_from_init: bool = False  # train the model of `init_from`, whatever its size, in place of `model`
