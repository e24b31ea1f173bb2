"""ViTDet: objects found by the plain ViT, with boxes, classes and masks. Arrays in, arrays out.

Reference: Li et al. 2022, "Exploring Plain Vision Transformer Backbones for Object Detection".
"""

from sam_jax.detection.config import DetectorConfig
from sam_jax.detection.detector import Detections, Proposals, detect_objects, init_detector

__all__ = ["Detections", "DetectorConfig", "Proposals", "detect_objects", "init_detector"]
