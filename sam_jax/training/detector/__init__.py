"""Training of ViTDet detectors that find objects of any kind: one class, boxes and masks."""
