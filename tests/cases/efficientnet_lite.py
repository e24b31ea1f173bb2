"""A small model with an EfficientNet-Lite encoder, and that network in PyTorch, with the published names."""

import dataclasses
from typing import Any

from cases.models import SMALL
from sam_jax.config import EfficientNetLiteConfig
from sam_jax.modeling.encoders.efficientnet_lite import EPSILON, EXPANSIONS, KERNELS, STEM, STRIDES

ENCODER = EfficientNetLiteConfig(
    image_size=64,
    widths=(4, 6, 8, 8, 12, 16, 20),
    depths=(1, 2, 2, 1, 2, 1, 1),
    attention_dim=16,
    attention_depth=1,
    attention_heads=2,
    dim=16,
    fusion_depth=1,
)
MODEL = dataclasses.replace(SMALL, name="lite", encoder=ENCODER, high_res_features=True)


def pytorch_backbone(config: EfficientNetLiteConfig) -> Any:
    """Returns a module with random weights that maps (B, 3, S, S) to the last map of each stride, {stride: map}."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    class SameConv(nn.Conv2d):
        """TensorFlow's padding "SAME": what is odd goes to the right and the bottom."""

        def forward(self, x):
            pads = []
            for length in (x.shape[3], x.shape[2]):
                total = max((-(-length // self.stride[0]) - 1) * self.stride[0] + self.kernel_size[0] - length, 0)
                pads += [total // 2, total - total // 2]
            return F.conv2d(F.pad(x, pads), self.weight, None, self.stride, 0, 1, self.groups)

    def conv(inputs, outputs, kernel, stride=1, groups=1):
        return SameConv(inputs, outputs, kernel, stride, groups=groups, bias=False)

    def norm(features):
        module = nn.BatchNorm2d(features, eps=EPSILON)
        module.running_mean.normal_(0, 0.2)
        module.running_var.uniform_(0.5, 1.5)
        nn.init.uniform_(module.weight, 0.5, 1.5)
        nn.init.normal_(module.bias, 0, 0.2)
        return module

    class Block(nn.Module):
        def __init__(self, inputs, outputs, expansion, kernel, stride):
            super().__init__()
            width = inputs * expansion
            if expansion != 1:
                self._expand_conv, self._bn0 = conv(inputs, width, 1), norm(width)
            self._depthwise_conv, self._bn1 = conv(width, width, kernel, stride, width), norm(width)
            self._project_conv, self._bn2 = conv(width, outputs, 1), norm(outputs)

        def forward(self, x):
            y = F.relu6(self._bn0(self._expand_conv(x))) if hasattr(self, "_expand_conv") else x
            y = self._bn2(self._project_conv(F.relu6(self._bn1(self._depthwise_conv(y)))))
            return x + y if x.shape == y.shape else y

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self._conv_stem, self._bn0 = conv(3, STEM, 3, 2), norm(STEM)
            blocks, inputs = [], STEM
            for stage, (outputs, depth) in enumerate(zip(config.widths, config.depths, strict=True)):
                for i in range(depth):
                    stride = STRIDES[stage] if i == 0 else 1
                    blocks.append(Block(inputs, outputs, EXPANSIONS[stage], KERNELS[stage], stride))
                    inputs = outputs
            self._blocks = nn.ModuleList(blocks)
            self._conv_head, self._bn1, self._fc = conv(inputs, 24, 1), norm(24), nn.Linear(24, 5)  # the classifier

        def forward(self, images):
            x, maps = F.relu6(self._bn0(self._conv_stem(images))), {}
            for block in self._blocks:
                x = block(x)
                maps[images.shape[-1] // x.shape[-1]] = x
            return maps

    torch.manual_seed(0)
    return Network().eval()
