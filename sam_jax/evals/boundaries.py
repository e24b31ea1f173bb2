"""Thinning and matching of boundary maps, as the BSDS benchmark does them.

Reference: Martin, Fowlkes, Malik 2004; the BSDS500 benchmark's `bwmorph(..., 'thin', inf)` and `correspondPixels`.

The benchmark thresholds a soft edge map 99 times and matches every binary map with every annotator. Few pixels change
between two thresholds, so the matching of one threshold is updated pixel by pixel with shortest augmenting paths
instead of solving 99 assignment problems from scratch. Each matching is still an exact optimum. The functions are
compiled by numba and release the GIL, so that images can be scored in threads.
"""

from __future__ import annotations

import heapq
import math

import numpy as np
from jaxtyping import Bool

from sam_jax.errors import MissingPackage

try:
    import numba
except ImportError as error:
    raise MissingPackage("the boundary benchmark needs numba: pip install 'sam_jax[eval]'") from error

COSTS_PER_PIXEL = 100  # distances are rounded to integers of 1/100 pixel, as in the original
OUTLIER_COST = 100  # in multiples of the maximum distance
FAR = np.iinfo(np.int64).max


def _removable() -> np.ndarray:
    """Returns, for both sub-iterations of thinning, which of the 256 neighbourhoods allow removing the centre pixel.

    Bit i is the neighbour x_(i + 1) of Guo and Hall: E, NE, N, NW, W, SW, S, SE.
    """
    table = np.zeros((2, 256), np.bool_)
    for code in range(256):
        x = [bool(code >> i & 1) for i in range(8)]
        crossings = sum(not x[2 * i] and (x[2 * i + 1] or x[(2 * i + 2) % 8]) for i in range(4))
        one_way = sum(x[2 * i] or x[2 * i + 1] for i in range(4))
        other_way = sum(x[2 * i + 1] or x[(2 * i + 2) % 8] for i in range(4))
        if crossings == 1 and 2 <= min(one_way, other_way) <= 3:
            table[0, code] = not ((x[1] or x[2] or not x[7]) and x[0])
            table[1, code] = not ((x[5] or x[6] or not x[3]) and x[4])
    return table


_REMOVABLE = _removable()


def thin(maps: Bool[np.ndarray, "K H W"]) -> Bool[np.ndarray, "K H W"]:
    """Thins each map to lines one pixel wide, iterating the two steps of Guo and Hall (1989) until nothing changes.

    Equals MATLAB's bwmorph(map, 'thin', inf) on each map; pixels outside of a map count as empty.
    """
    padded = np.pad(maps, ((0, 0), (1, 1), (1, 1)))
    width = padded.shape[2]
    neighbours = np.array([1, 1 - width, -width, -1 - width, -1, width - 1, width, width + 1])
    for i in range(len(padded)):
        if i and np.array_equal(maps[i], maps[i - 1]):
            padded[i] = padded[i - 1]
        else:
            _thin(padded[i].reshape(-1), neighbours, _REMOVABLE)
    return padded[:, 1:-1, 1:-1]


@numba.njit(nogil=True, cache=True)
def _thin(map_: np.ndarray, neighbours: np.ndarray, removable: np.ndarray) -> None:
    pixels = np.flatnonzero(map_)
    going = np.empty(len(pixels), np.int64)
    changed = True
    while changed:
        changed = False
        for step in range(2):
            count = 0
            for pixel in pixels:
                if map_[pixel]:
                    code = 0
                    for i in range(8):
                        code |= map_[pixel + neighbours[i]] << i
                    if removable[step, code]:
                        going[count] = pixel
                        count += 1
            for i in range(count):
                map_[going[i]] = False
            changed |= count > 0


def match_boundaries(
    maps: Bool[np.ndarray, "K H W"], ground_truth: Bool[np.ndarray, "H W"], max_distance: float
) -> Bool[np.ndarray, "K H W"]:
    """Matches the pixels of each map one to one with pixels of the ground truth.

    Matched pixels are at most `max_distance` apart. Among all such matchings, it is one that minimises the sum of
    distances plus an outlier cost of 100 max_distance for every unmatched pixel, in integers of 1/100 pixel.

    The original solves an assignment problem between the n1 pixels of the map and the n2 pixels of the ground truth,
    with outlier nodes added to both. With k pairs, n1 - k and n2 - k pixels are assigned to outliers, and k outliers to
    each other, each at the outlier cost w: distances + (n1 + n2 - k) w in all. Here only the pixels of the map have
    outliers: distances + (n1 - k) w, which is lower by the constant n2 w and has the same optima. (The original
    connects each pixel with six random outliers, not with all, and so misses about 4 pairs in 10,000.)

    Maximising k instead would not do. The minimum does not always have the largest k: one more pair lengthens the
    others, and an augmenting path of more than 99 pixels could cost more than it saves. It also matters which pixels
    are matched, since a pixel of the map is correct if any annotator has it. Where several matchings are optimal, the
    choice depends on the solver, in the original as here: they differ in which pixels are matched, not in their cost.

    Args:
        maps: thinned maps. It is faster if consecutive maps differ in few pixels.
        ground_truth: boundaries drawn by one annotator.
        max_distance: in pixels.

    Returns:
        The matched pixels of each map. The same number of pixels of the ground truth is matched.

    Raises:
        ValueError: the sizes differ, or `max_distance` is not positive.
    """
    if maps.ndim != 3 or maps.shape[1:] != ground_truth.shape:
        raise ValueError(f"expected maps (K, H, W) of the ground truth's size {ground_truth.shape}, got {maps.shape}")
    if not max_distance > 0:
        raise ValueError(f"expected a max_distance above 0, got {max_distance}")
    radius = math.ceil(max_distance)
    dy, dx = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    near = dx**2 + dy**2 <= max_distance**2
    margin = ((radius, radius), (radius, radius))
    padded, padded_gt = np.pad(maps, ((0, 0), *margin)), np.pad(ground_truth, margin)
    shifts = (dy * padded.shape[2] + dx)[near].astype(np.int64)
    costs = np.rint(np.hypot(dx, dy)[near] * COSTS_PER_PIXEL).astype(np.int64)
    outlier = math.ceil(OUTLIER_COST * max_distance * COSTS_PER_PIXEL)
    flat = padded.reshape(len(maps), -1)
    matched = np.zeros_like(flat)
    _match(flat, padded_gt.reshape(-1), np.flatnonzero(flat.any(0)), shifts, costs, outlier, matched)
    inner = slice(radius, -radius)
    return matched.reshape(padded.shape)[:, inner, inner]


@numba.njit(nogil=True, cache=True)
def _match(
    maps: np.ndarray,
    ground_truth: np.ndarray,
    places: np.ndarray,
    shifts: np.ndarray,
    costs: np.ndarray,
    outlier: int,
    matched: np.ndarray,
) -> None:
    """Computes the matching of each map in turn, kept optimal as pixels are removed and added.

    Pixels are flat indices into the padded map. Dual prices certify the optimum: u for the map's pixels and v for the
    ground truth's, with u + v <= cost for any pair and u + v = cost for matched pairs; u <= outlier, and equal where
    unmatched; v <= 0, and equal where unmatched.
    """
    size = len(ground_truth)
    mine = np.zeros(size, np.bool_)
    partner, gt_partner = np.full(size, -1, np.int64), np.full(size, -1, np.int64)
    u, v = np.zeros(size, np.int64), np.zeros(size, np.int64)
    length, gt_length = np.full(size, FAR, np.int64), np.full(size, FAR, np.int64)
    before = np.full(size, -1, np.int64)
    for k in range(len(maps)):
        for pixel in places:
            if mine[pixel] and not maps[k, pixel]:
                mine[pixel] = False
                free = partner[pixel]
                if free >= 0:
                    partner[pixel] = gt_partner[free] = -1
                    side, other = (gt_partner, v, gt_length), (partner, u, length)
                    _enter(free, 0, mine, side, other, before, shifts, costs)
        for pixel in places:
            if maps[k, pixel] and not mine[pixel]:
                mine[pixel] = True
                side, other = (partner, u, length), (gt_partner, v, gt_length)
                _enter(pixel, outlier, ground_truth, side, other, before, shifts, costs)
        for pixel in places:
            matched[k, pixel] = mine[pixel] and partner[pixel] >= 0


@numba.njit(nogil=True, cache=True)
def _enter(
    start: int,
    single: int,
    present: np.ndarray,
    side: tuple[np.ndarray, np.ndarray, np.ndarray],
    other_side: tuple[np.ndarray, np.ndarray, np.ndarray],
    before: np.ndarray,
    shifts: np.ndarray,
    costs: np.ndarray,
) -> None:
    """Adds an unmatched pixel to one side and makes the matching optimal again with a shortest augmenting path.

    The path alternates between the sides. It ends at an unmatched pixel of the other side, or at a pixel of this side
    that becomes unmatched in place of the one that is added.

    Args:
        single: cost of an unmatched pixel on this side; on the other side it is included in the prices already.
        present: which pixels the other side has.
        side, other_side: partners (-1 for none), prices, and lengths of the shortest paths (FAR between two calls).
        before: scratch space for the pixel of this side that precedes each pixel of the other side on its path.
    """
    size = len(present)
    partner, price, length = side
    other_partner, other_price, other_length = other_side
    price[start] = single
    for i in range(len(shifts)):
        there = start + shifts[i]
        if present[there]:
            price[start] = min(price[start], costs[i] - other_price[there])
    if price[start] == single:
        return
    length[start] = 0
    heap = [start]  # length * size + pixel of this side
    done = [start for _ in range(0)]  # of this side
    reached = [start for _ in range(0)]  # of the other side
    best, end, end_there = FAR, -1, -1
    while heap:
        so_far, here = divmod(heapq.heappop(heap), size)
        if so_far >= best:
            break
        if so_far > length[here]:
            continue  # a shorter path was found meanwhile
        done.append(here)
        if so_far + single - price[here] < best:
            best, end, end_there = so_far + single - price[here], here, -1
        for i in range(len(shifts)):
            there = here + shifts[i]
            if not present[there]:
                continue
            new = so_far + costs[i] - price[here] - other_price[there]
            if new >= other_length[there] or new >= best:
                continue
            if other_length[there] == FAR:
                reached.append(there)
            other_length[there] = new
            before[there] = here
            owner = other_partner[there]
            if owner < 0:
                best, end, end_there = new, -1, there
            else:
                length[owner] = new
                heapq.heappush(heap, new * size + owner)
    for here in done:
        price[here] += max(0, best - length[here])
        length[here] = FAR
    for there in reached:
        other_price[there] -= max(0, best - other_length[there])
        other_length[there] = FAR
        if other_partner[there] >= 0:
            length[other_partner[there]] = FAR
    if end >= 0:
        if end == start:
            return
        end_there = partner[end]
        partner[end] = -1
    here = -1
    while here != start:
        here = before[end_there]
        next_there = partner[here]
        partner[here], other_partner[end_there] = end_there, here
        end_there = next_there
