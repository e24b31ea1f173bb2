"""Ground truth in the files of BSDS500."""

import numpy as np
import scipy.io


def write_truth(path, truths):
    """A .mat file as BSDS500 has it."""
    people = np.empty((1, len(truths)), object)
    for i, truth in enumerate(truths):
        people[0, i] = {"Segmentation": truth.astype(np.uint16), "Boundaries": truth.astype(np.uint8)}
    path.parent.mkdir(parents=True, exist_ok=True)
    scipy.io.savemat(path, {"groundTruth": people})
