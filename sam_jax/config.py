"""Defines the frozen dataclasses that describe a model and a training run."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from sam_jax.bounds import (
    Area,
    Batch,
    CheckedFields,
    Count,
    CountOrNone,
    Decay,
    Depth,
    Deviation,
    Factor,
    Fraction,
    Growth,
    Layers,
    Mean,
    Period,
    Pixels,
    PositiveFactor,
    Rate,
    Regex,
    Rounds,
    Scale,
    Seed,
    Share,
    Side,
    Steps,
    Threads,
    Width,
    WidthOrNone,
    Within,
    field_types,
)
from sam_jax.errors import UserError

LARGEST_GRID = 512  # cells along the side of an encoder's map


@dataclasses.dataclass(frozen=True)
class JsonConfig(CheckedFields):
    """The base of the configs that are stored beside params as JSON, with configs among their fields."""

    def __post_init__(self) -> None:
        # JSON gives lists; tuples keep the config hashable, which jit's static arguments need.
        for field in dataclasses.fields(self):
            if isinstance(value := getattr(self, field.name), list):
                object.__setattr__(self, field.name, tuple(value))
        super().__post_init__()

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
            UserError: this is not a mapping, has fields that this version does not know, or values that do not go
                together.
        """
        if not isinstance(fields, Mapping):
            raise UserError(f"expected a JSON object with fields of {cls.__name__}, got {type(fields).__name__}")
        if unknown := sorted(map(str, fields.keys() - {field.name for field in dataclasses.fields(cls)})):
            raise UserError(f"expected a JSON object with fields of {cls.__name__}, got unknown {unknown[:8]}")
        values = dict(fields)
        for name, kind in field_types(cls).items():
            if name in values and isinstance(kind, type) and issubclass(kind, JsonConfig):
                values[name] = kind.from_fields(values[name])
        try:
            return cls(**values)
        except UserError as error:
            raise UserError(f"{cls.__name__}: {error}") from error

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Reads what `to_json` wrote.

        Raises:
            UserError: the text is not JSON; and as `from_fields`.
        """
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError) as error:  # no JSON, a number of thousands of digits, or too deep
            raise UserError(f"expected the JSON of a {cls.__name__}, got {text[:80]!r}") from error
        return cls.from_fields(fields)


@dataclasses.dataclass(frozen=True)
class ModelConfig(JsonConfig):
    """The base of the configs that define a model of one of the families in `sam_jax.checkpoints`."""

    name: str


def check_order(name: str, values: tuple[float, float]) -> None:
    """Refuses a config in which the first of two values is greater than the second."""
    if values[0] > values[1]:
        raise UserError(f"expected {name} to be two numbers in order, the lower one first, got {values[0]} {values[1]}")


def check_multiple(complaint: str, total: int, part: int) -> None:
    """Refuses a config in which `total` is not a multiple of `part`, or one of them not positive."""
    if part <= 0 or total <= 0 or total % part:
        raise UserError(f"{complaint}; got {total} and {part}")


def check_grid(side: int) -> None:
    """Refuses a config whose map has more cells along a side than any memory holds the attention of."""
    if side > LARGEST_GRID:
        raise UserError(
            f"expected an image_size of at most {LARGEST_GRID} cells or patches along a side, got one of {side:,}"
        )


@dataclasses.dataclass(frozen=True)
class EncoderConfig(JsonConfig):
    """The base of the image encoders' configs; each encoder in `sam_jax.modeling.encoders` has a class of its own.

    Attributes:
        kind: name of the encoder in files.
    """

    kind: ClassVar[str] = ""
    image_size: Side = 1024  # side of the square input frame, pixels
    pixel_mean: tuple[Mean, Mean, Mean] = (123.675, 116.28, 103.53)  # subtracted from RGB values of 0-255
    pixel_std: tuple[Deviation, Deviation, Deviation] = (58.395, 57.12, 57.375)  # divides them afterwards

    def __post_init__(self) -> None:
        super().__post_init__()
        check_multiple("image_size must be a multiple of the encoder's stride", self.image_size, self.stride)
        check_grid(self.grid_size)

    @property
    def stride(self) -> int:
        """Returns the pixels of the input frame per cell of the encoder's last map, along a side."""
        raise NotImplementedError

    @property
    def features(self) -> int:
        """Returns the number of channels of the encoder's last map."""
        raise NotImplementedError

    @property
    def grid_size(self) -> int:
        """Returns the side of the encoder's last map, in cells."""
        return self.image_size // self.stride

    def to_fields(self) -> dict[str, Any]:
        """Returns the fields, and the kind."""
        return {"kind": self.kind} | super().to_fields()

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Self:
        """Reads what `to_fields` gave. `EncoderConfig` itself reads that of any encoder, which `kind` tells.

        Raises:
            UserError: this version does not know the kind; and as `JsonConfig.from_fields`.
        """
        classes: dict[str, type[Self]] = {known.kind: known for known in (cls, *cls.__subclasses__()) if known.kind}
        kind = fields.get("kind") if isinstance(fields, Mapping) else None
        if not isinstance(kind, str) or kind not in classes:
            raise UserError(f"expected an image encoder of kind {' or '.join(sorted(classes))}, got {str(kind)[:80]!r}")
        own = {name: value for name, value in fields.items() if name != "kind"}
        return super(EncoderConfig, classes[kind]).from_fields(own)


@dataclasses.dataclass(frozen=True)
class ViTConfig(EncoderConfig):
    """A plain ViT with windowed and global attention. The defaults are ViT-B.

    Reference: Kirillov et al. 2023, section A; Li et al. 2022 (ViTDet).
    """

    kind: ClassVar[str] = "vit"
    patch_size: Annotated[int, Within(1, 256)] = 16  # side of one patch, pixels
    dim: Width = 768  # width of the tokens
    depth: Annotated[Depth, Layers(tensors=14)] = 12  # number of blocks
    heads: Width = 12  # attention heads of each block
    mlp_ratio: Annotated[float, Within(0, 16, above=True)] = 4.0  # hidden width of an MLP = dim * this
    window_size: Annotated[int, Within(0, 1024)] = 14  # side of an attention window, patches
    global_attention_blocks: tuple[Depth, ...] = (2, 5, 8, 11)  # blocks, from 0, that attend to the whole image

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
class EfficientNetLiteConfig(EncoderConfig):
    """An EfficientNet-Lite with a fusion of its maps. The defaults are Lite0.

    Reference: Tan and Le 2019; the Lite variants of tensorflow/tpu.
    """

    kind: ClassVar[str] = "efficientnet_lite"
    image_size: Side = 512
    pixel_mean: tuple[Mean, Mean, Mean] = (127.0, 127.0, 127.0)
    pixel_std: tuple[Deviation, Deviation, Deviation] = (128.0, 128.0, 128.0)
    widths: tuple[Width, ...] = (16, 24, 40, 80, 112, 192, 320)  # channels of the seven stages
    depths: tuple[Annotated[Depth, Layers(tensors=10)], ...] = (1, 2, 2, 3, 3, 4, 1)  # blocks of the seven stages
    attention_dim: Width = 256  # width of the attention over the map of stride 32
    attention_depth: Annotated[Depth, Layers(tensors=14)] = 2  # blocks of it
    attention_heads: Width = 4  # heads of each block
    dim: Width = 192  # width of the fused map, of stride 16
    fusion_depth: Annotated[Depth, Layers(tensors=8)] = 2  # blocks that follow the fusion

    def __post_init__(self) -> None:
        super().__post_init__()
        check_multiple("image_size must be a multiple of the coarsest map's stride", self.image_size, 32)
        check_multiple("attention_dim must be a multiple of attention_heads", self.attention_dim, self.attention_heads)
        if len(self.widths) != 7 or len(self.depths) != 7 or min(self.depths) < 1:
            raise UserError(f"expected widths and depths of seven stages, got {self.widths} and {self.depths}")

    @property
    def stride(self) -> int:
        return 16

    @property
    def features(self) -> int:
        return self.dim


@dataclasses.dataclass(frozen=True)
class TinyViTConfig(EncoderConfig):
    """A TinyViT. The defaults are MobileSAM's.

    Reference: Wu et al. 2022; Zhang et al. 2023.
    """

    kind: ClassVar[str] = "tiny_vit"
    widths: tuple[Width, ...] = (64, 128, 160, 320)  # channels of the four stages
    depths: tuple[Annotated[Depth, Layers(tensors=16)], ...] = (2, 2, 6, 2)  # blocks of the four stages
    heads: tuple[Width, ...] = (1, 4, 5, 10)  # attention heads; the first stage, which only convolves, has none
    windows: tuple[Annotated[int, Within(1, 1024)], ...] = (1, 7, 14, 7)  # sides of the attention windows; likewise
    mlp_ratio: Annotated[float, Within(0, 16, above=True)] = 4.0  # hidden width of an MLP = width * this
    expansion: Annotated[float, Within(0, 16, above=True)] = 4.0  # the same in the blocks of the first stage

    def __post_init__(self) -> None:
        super().__post_init__()
        lengths = {len(numbers) for numbers in (self.widths, self.depths, self.heads, self.windows)}
        if lengths != {4} or min(self.depths) < 1:
            raise UserError(
                f"expected widths, depths, heads and windows of four stages, got {self.widths}, {self.depths}, "
                f"{self.heads} and {self.windows}"
            )
        for width, heads in zip(self.widths[1:], self.heads[1:], strict=True):
            check_multiple("the width of a stage must be a multiple of its heads", width, heads)

    @property
    def stride(self) -> int:
        return 16

    @property
    def features(self) -> int:
        return self.widths[-1]


@dataclasses.dataclass(frozen=True)
class SamConfig(ModelConfig):
    """The numbers that define one Segment Anything model.

    The defaults are ViT-B of the paper; `SIZES` holds every published size.

    Reference: Kirillov et al. 2023, sections 3 and A.
    """

    name: str = "vit_b"
    encoder: EncoderConfig = ViTConfig()
    prompt_dim: Width = 256  # width of the image embedding, the prompts and the decoder
    mask_channels: Width = 16  # hidden channels of the mask prompt's convolutions
    decoder_depth: Annotated[Depth, Layers(tensors=36)] = 2  # two-way attention blocks of the decoder
    decoder_heads: Width = 8  # attention heads of the decoder's blocks
    decoder_mlp_dim: Width = 2048  # hidden width of the MLPs in the decoder's blocks
    decoder_attention_downsample: Width = 2  # width of cross-attention = prompt_dim / this
    num_multimask_outputs: Annotated[int, Within(1, 100), Layers(tensors=6)] = 3  # masks for an ambiguous prompt
    iou_head_depth: Annotated[int, Within(1, 1000), Layers(tensors=2)] = 3  # layers of the MLP that predicts IoUs
    iou_head_hidden_dim: Width = 256  # hidden width of that MLP
    high_res_features: bool = False  # maps twice and four times as fine as the embedding are added in the up-scaling
    iou_sees_mask: bool = False  # the predicted IoU of a mask depends on how certain its logits are, too
    text_dim: WidthOrNone = 0  # width of the CLIP embedding that a text prompt is; 0: the model has no text prompt
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
        if bool(self.text_dim) != bool(self.text_encoder):
            raise UserError(
                "text_dim and text_encoder go together, the width of an embedding and the name of the CLIP that gives "
                f"it; got {self.text_dim} and {self.text_encoder!r}"
            )

    @property
    def image_size(self) -> int:
        """Returns the side of the square input frame, in pixels."""
        return self.encoder.image_size

    @property
    def grid_size(self) -> int:
        """Returns the side of the image embedding, in cells."""
        return self.encoder.grid_size

    @property
    def low_res_size(self) -> int:
        """Returns the side of the decoder's logits and of a mask prompt, in pixels."""
        return 4 * self.grid_size

    @property
    def embedding_dim(self) -> int:
        """Returns the channels of a cell of the image embedding, which holds the finer maps too where there are any.

        These are 4 cells of prompt_dim / 4 channels, and 16 of prompt_dim / 8.
        """
        return self.prompt_dim * (4 if self.high_res_features else 1)

    @property
    def num_mask_tokens(self) -> int:
        """Returns the number of masks of a prompt: those for an ambiguous one, and one (index 0) for the rest."""
        return self.num_multimask_outputs + 1

    def with_image_size(self, image_size: int) -> SamConfig:
        """Returns the same model for another input frame, `image_size` pixels wide and high."""
        return dataclasses.replace(self, encoder=dataclasses.replace(self.encoder, image_size=image_size))

    def without_text(self) -> SamConfig:
        """Returns the same model without its text prompt, as the official code knows it."""
        return dataclasses.replace(self, text_dim=0, text_encoder="")

    def to_fields(self) -> dict[str, Any]:
        """Returns the fields; what a model does not have is left out, so that it is written as before there was any."""
        fields = super().to_fields()
        for name in ("high_res_features", "iou_sees_mask"):
            if not fields[name]:
                del fields[name]
        if not self.text_dim:
            del fields["text_dim"], fields["text_encoder"]
        return fields

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Self:
        """Reads what `to_fields` gave; old files have the fields of the ViT among the model's own.

        Raises:
            UserError: as `JsonConfig.from_fields`.
        """
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
# With the light encoder of Zhang et al. 2023.
MOBILE_SAM = SamConfig("mobile_sam", TinyViTConfig())
# Ours, with an image encoder that runs well on a CPU.
SMALL = SamConfig(
    name="small",
    encoder=EfficientNetLiteConfig(image_size=768),
    prompt_dim=128,
    decoder_heads=4,
    decoder_mlp_dim=512,
    iou_head_hidden_dim=128,
    high_res_features=True,
)
SIZES: dict[str, SamConfig] = {config.name: config for config in (VIT_B, VIT_L, VIT_H)}


@dataclasses.dataclass(frozen=True)
class EverythingOptions(JsonConfig):
    """What suits a model in everything mode, in place of a preset's values; None leaves a value to the preset.

    They are stored in the model's checkpoint, and are those fields of `MaskGeneratorConfig` that depend on the model.
    """

    points_per_side: Annotated[int, Within(8, 128)] | None = None  # points along one side of the grid
    pred_iou_thresh: Fraction | None = None  # masks with a predicted IoU above this stay
    stability_score_thresh: Fraction | None = None  # masks with at least this stability stay
    stability_score_offset: Annotated[float, Within(0, 100)] | None = None  # distance of its thresholds from 0, logits
    box_nms_thresh: Fraction | None = None  # box IoU above which the mask of lower predicted IoU is dropped in a crop
    crop_n_layers: Annotated[int, Within(0, 3)] | None = None  # layers of crops, segmented like images
    crop_nms_thresh: Fraction | None = None  # likewise between crops
    min_mask_region_area: Annotated[int, Within(0, 1_000_000)] | None = None  # smaller holes, islands are removed

    def to_fields(self) -> dict[str, Any]:
        """Returns the values that are given, by name."""
        return {name: value for name, value in super().to_fields().items() if value is not None}


NO_OPTIONS = EverythingOptions()


DataFormat = Literal["auto", "named", "prepared", "sa1b", "coco", "labels", "masks"]
LabelValues = Literal["auto", "instances", "classes"]


MOST_MASKS = 4096  # of an image, that are drawn at a time


@dataclasses.dataclass(frozen=True)
class DataConfig(CheckedFields):
    """Where the images are and how a batch is drawn from them."""

    path: Path | None = None  # folder or file of the data; sam_jax.data.sources lists what is looked for
    datasets: tuple[str, ...] = ("bsds500", "ccp", "coco_small")  # named sets in `path` to train on, if format is named
    dataset_weights: tuple[Factor, ...] = ()  # how often images of each of `datasets` are drawn; empty: all once
    format: DataFormat = "auto"  # format of the data; auto: found out from what is at `path`; named: see `datasets`
    images: Path | None = None  # folder of the images, where they are not near their annotations
    label_values: LabelValues = "auto"  # what the values of label maps stand for; auto: objects, if they look like it
    batch_size: Batch = 8  # images per step, over all devices
    masks_per_image: Annotated[int, Within(1, MOST_MASKS)] = 64  # masks drawn per image; images with fewer are padded
    repeat_masks: bool = False  # images with fewer masks repeat theirs, for more prompts of each
    min_original_area: Area = 1  # least area of a mask in the image as given, pixels; smaller ones are left out
    min_area: Area = 16  # least area of a mask after scaling and cropping, pixels of the input frame
    max_area_fraction: Fraction = 0.9  # masks that cover a larger fraction of the image are dropped
    scale_range: tuple[Scale, Scale] = (1.0, 1.0)  # factors on the fitted image's size; above 1 it is cropped
    flip_probability: Fraction = 0.0  # probability of a horizontal flip
    colour_jitter: Fraction = 0.0  # brightness and contrast vary by up to this fraction
    mosaic_probability: Fraction = 0.0  # probability that an image shares its frame with three others
    copy_paste_probability: Fraction = 0.0  # probability that an object of another image is pasted on an image
    workers: Threads = 1  # threads that prepare batches, in each process
    worker_processes: Threads = 0  # processes that prepare batches; 0: the training process does
    max_bad_fraction: Fraction = 0.01  # fraction of the records that may be unusable before the run stops

    def __post_init__(self) -> None:
        super().__post_init__()
        check_order("scale_range", self.scale_range)

    @property
    def augments(self) -> bool:
        """Whether an image looks different each time that it is drawn."""
        chances = self.flip_probability, self.colour_jitter, self.mosaic_probability, self.copy_paste_probability
        return self.scale_range != (1.0, 1.0) or any(chances)


@dataclasses.dataclass(frozen=True)
class PromptConfig(CheckedFields):
    """How the annotator is simulated that prompts in training (section A of the paper, "training algorithm")."""

    point_rounds: Rounds = 8  # rounds that add a point from the error region
    refine_rounds: Rounds = 2  # rounds that only feed the logits back: the last one, and others at random places
    box_probability: Fraction = 0.5  # probability that the first prompt is a box; otherwise it is a point
    box_noise: Annotated[float, Within(0, 10)] = 0.1  # standard deviation of the noise on a box, fraction of its side
    box_noise_max: Pixels = 20.0  # largest noise on a box, pixels of a 1024 frame; scaled to the model's


@dataclasses.dataclass(frozen=True)
class TextConfig(CheckedFields):
    """How text prompts are learned, from CLIP's image embeddings of the masks (section D.5 of the paper)."""

    clip: str | None = None  # name or path of the CLIP; None: no text prompts are trained
    probability: Fraction = 1.0  # probability that the first prompt is a text; otherwise it is a point or a box
    expansion: tuple[Growth, Growth] = (1.0, 2.0)  # range of the growth of a mask's box before it is cut out
    hide_probability: Fraction = 0.5  # probability that what surrounds the object is zeroed

    def __post_init__(self) -> None:
        super().__post_init__()
        check_order("expansion", self.expansion)


@dataclasses.dataclass(frozen=True)
class LossConfig(CheckedFields):
    """The weights of the loss's terms, and the size at which it is computed."""

    focal: Factor = 20.0  # weight of the focal loss
    dice: Factor = 1.0  # weight of the dice loss
    iou: Factor = 1.0  # weight of the squared error of predicted IoUs
    focal_alpha: Fraction = 0.25  # weight of foreground pixels in the focal loss; background pixels have 1 - this
    focal_gamma: Annotated[float, Within(0, 100)] = 2.0  # exponent of the focal loss
    iou_of_all_masks: bool = False  # learn the predicted IoU of every mask, as SAM 2, and not of the best alone
    single_mask_first: bool = False  # the single mask learns from first prompts too, as from those of later rounds
    trusted: Fraction = 0.0  # part of focal and dice that is of the mask with the highest predicted IoU, not the best
    size: Side = 1024  # side at which logits and target masks are compared, pixels; the input frame scaled


@dataclasses.dataclass(frozen=True)
class OptimizerConfig(CheckedFields):
    """AdamW, linear warm-up, step decay, layer-wise decay of the encoder's learning rate."""

    learning_rate: Annotated[float, Within(0, 1000)] = 8e-4  # learning rate after the warm-up
    warmup_steps: Steps = 250  # steps over which the learning rate rises from 0
    decay_steps: tuple[Steps, ...] = (60_000, 86_666)  # steps at which the learning rate is divided by 10
    betas: tuple[Decay, Decay] = (0.9, 0.999)  # decay rates of Adam's moments
    weight_decay: Factor = 0.1  # decay of matrices; biases, norms and embeddings are exempt
    layer_decay: Share = 0.8  # factor on the learning rate from one layer of the encoder to the one before
    epsilon: Share = 1e-8  # term that keeps Adam's divisor above 0
    clip_norm: PositiveFactor | None = None  # largest global norm of the gradients; None: no limit


@dataclasses.dataclass(frozen=True)
class FinetuneConfig(CheckedFields):
    """Which params are trained. Their names are like image_encoder/blocks_0/attn/qkv/kernel."""

    trainable: Regex = r""  # regular expression, searched in names; params in which it is not found stay as they are
    lora_rank: WidthOrNone = 0  # rank of low-rank adapters (Hu et al. 2021) on the kernels of `lora_targets`; 0: none
    lora_alpha: Factor = 16.0  # an adapter's product is multiplied by alpha / rank
    lora_targets: Regex = r"image_encoder/blocks_\d+/attn/(qkv|proj)/kernel$"  # kernels that learn by adapters
    cache_embeddings: bool = False  # encode each image once, before training; for a frozen encoder
    cache_views: Rounds = 0  # augmented views of each image whose frozen maps are computed before training; 0: none are
    cache_folder: Path | None = None  # folder of these maps, which runs can share; None: in `out`
    cache_gb: PositiveFactor = 20.0  # most that these maps may take on disk, 10^9 bytes


@dataclasses.dataclass(frozen=True)
class ParallelConfig(CheckedFields):
    """How a step spreads over devices. The update is the same, but for the draws of dropout and drop path."""

    mode: Literal["mesh", "pmap"] = "mesh"  # one program over a mesh with sharded state, or pmap with a copy on each
    data: CountOrNone = 0  # devices among which only images are divided; 0: as many as there are
    fsdp: Count = 1  # devices among which images, params and optimizer state are divided; mesh only
    coordinator: str | None = None  # host:port of process 0 of several; TPU pods and SLURM jobs need none
    processes: Count | None = None  # number of processes, with `coordinator`
    process: CountOrNone | None = None  # number of this process, from 0, with `coordinator`


@dataclasses.dataclass(frozen=True)
class RunConfig(CheckedFields):
    """The options of every training run, whatever it trains; a subclass adds the model and its losses."""

    out: Path  # folder of checkpoints, metrics and the exported model
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    parallel: ParallelConfig = ParallelConfig()
    steps: Period = 90_000  # optimizer steps
    seed: Seed = 0  # seed of all random draws
    dtype: Literal["float32", "bfloat16"] = "float32"  # format of the arithmetic; params, norms, losses are float32
    remat: bool = True  # recompute activations in the backward pass, to save memory
    drop_path: Rate = 0.0  # rate of stochastic depth in the encoder's last block; it rises from 0 in the first
    ema_decay: Decay | None = None  # decay of a moving average of the params, which is exported; None: there is none
    max_skipped: Count = 20  # updates in a row without finite gradients, which are left out, before the run stops
    init_from: str | None = None  # name or path of a SAM model whose params start the run
    init_encoder_from: Path | None = None  # published pre-trained model that starts the image encoder
    log_every: Period = 20  # steps between two lines of training metrics
    validate_every: Period = 1000  # steps between two validations; also before the first step and after the last one
    validation_batches: Annotated[int, Within(1, 10_000)] = 8  # batches of a validation
    save_every: Period = 1000  # steps between two checkpoints
    keep_checkpoints: Count = 2  # last checkpoints that are kept, besides the best by validation
    profile_steps: tuple[Period, Period] | None = None  # first and last step of a trace, in out/profile

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.profile_steps is not None:
            check_order("profile_steps", self.profile_steps)


@dataclasses.dataclass(frozen=True)
class TrainConfig(RunConfig):
    """One training run of a SAM."""

    model: SamConfig = VIT_B
    prompts: PromptConfig = PromptConfig()
    text: TextConfig = TextConfig()
    loss: LossConfig = LossConfig()
    drop_path: Rate = 0.4  # rate of stochastic depth in the encoder's last block; it rises from 0 in the first
    decoder_dropout: Rate = 0.1  # rate of dropout in the decoder
    accumulate: Batch = 1  # parts that the batch is cut into and worked through one after the other, to save memory
    init_decoder_from: str | None = None  # name or path of a SAM model whose prompt encoder and decoder start the run
    model_from_init: bool = False  # train the model of `init_from`, whatever its size, in place of `model`
    everything: EverythingOptions = NO_OPTIONS  # stored with the model, in place of what `init_from` says
