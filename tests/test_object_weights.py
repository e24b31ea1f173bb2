"""The benchmark's weights that find something."""

import numpy as np
from object_weights import MEDIAN_IOU, RADII, fit_readout


def test_fitted_masks_lie_around_their_clicks_and_half_of_them_are_confident():
    random = np.random.default_rng(0)
    points = random.uniform(4, 28, (16, 2))
    ys, xs = np.mgrid[:24, :32] + 0.5
    squares = (xs - points[:, 0, None, None]) ** 2 + (ys - points[:, 1, None, None]) ** 2
    channels = [np.exp(-squares / (2 * (radius * 32) ** 2)) for radius in RADII]
    features = np.stack([*channels, np.full_like(squares, 0.8)], -1) + 0.002 * random.normal(size=(16, 24, 32, 4))
    features[..., -1] = 0.8
    iou = random.normal(size=(16, 3)) * (0.1, 0.2, 0.3) + (-1, 0, 1)
    readout = fit_readout(features, iou, points)

    for radius, weights in zip(RADII, readout.channels, strict=True):
        masks, discs = features @ weights > 0, squares < (radius * 32) ** 2
        assert abs(masks.sum() / discs.sum() - 1) < 0.02
        assert (masks & discs).sum() / (masks | discs).sum() > 0.8
    np.testing.assert_allclose(np.median(iou * readout.iou_scale + readout.iou_shift, axis=0), MEDIAN_IOU, rtol=1e-6)
