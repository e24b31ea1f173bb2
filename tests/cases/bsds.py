"""Writes ground truth in the file format of BSDS500."""

import numpy as np
import scipy.io


def write_ground_truth(path, ground_truths):
    """Writes a .mat file as BSDS500 has it."""
    people = np.empty((1, len(ground_truths)), object)
    for i, ground_truth in enumerate(ground_truths):
        people[0, i] = {"Segmentation": ground_truth.astype(np.uint16), "Boundaries": ground_truth.astype(np.uint8)}
    path.parent.mkdir(parents=True, exist_ok=True)
    scipy.io.savemat(path, {"groundTruth": people})
