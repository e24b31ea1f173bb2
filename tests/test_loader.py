"""Batches: functions of seed and position, whoever makes them, and wherever a run goes on."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from PIL import Image

from cases.data import make_image, sa1b_files, write_images, write_tar
from cases.models import SMALL
from sam_jax.config import DataConfig
from sam_jax.data.augment import prepare_example, stack_rows
from sam_jax.data.bad_records import BadRecords
from sam_jax.data.examples import Example
from sam_jax.data.loader import fixed_batches, make_loader
from sam_jax.data.sa1b import Sa1bSource
from sam_jax.ops.rle import encode_rle

CONFIG = DataConfig(
    batch_size=4,
    masks_per_image=3,
    min_area=4,
    scale_range=(0.1, 2.0),
    flip_probability=0.5,
    colour_jitter=0.1,
    workers=2,
)


def make_source(folder, count: int) -> list[Example]:
    write_images(folder, range(count))
    parts = ((folder / f"{i}.jpg", *make_image(i)) for i in range(count))
    return [Example(path, image.shape[:2], tuple(map(encode_rle, masks)), "test") for path, image, masks in parts]


@pytest.fixture
def source(tmp_path):
    return make_source(tmp_path / "pictures", 6)


def loader(source, config=CONFIG, **changes):
    return make_loader(source, **{"model": SMALL, "config": config, "loss_size": 32, "seed": 1} | changes)


def take(iterator, count):
    return [next(iterator) for _ in range(count)]


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_batches_follow_from_the_seed_and_not_from_the_number_of_threads(source):
    batches = take(loader(source), 4)
    assert batches[0].images.shape == (4, SMALL.image_size, SMALL.image_size, 3)
    assert batches[0].masks.shape == (4, 3, 32, 32)
    assert_equal(batches, take(loader(source, dataclasses.replace(CONFIG, workers=1)), 4))
    assert (batches[0].images != take(loader(source, seed=2), 1)[0].images).any()


def test_every_epoch_has_each_image_once_in_another_order(source):
    iterator = loader(source, DataConfig(batch_size=3, masks_per_image=2), augment=False)
    epochs = [[image.tobytes() for batch in take(iterator, 2) for image in batch.images] for _ in range(4)]
    assert all(len(set(epoch)) == 6 for epoch in epochs)
    assert all(set(epoch) == set(epochs[0]) for epoch in epochs)
    assert len(set(map(tuple, epochs))) > 1


def test_images_come_back_differently_augmented_in_the_next_epoch(source):
    iterator = loader(source[:1], dataclasses.replace(CONFIG, batch_size=1))
    assert len({batch.images.tobytes() for batch in take(iterator, 5)}) == 5


def test_a_state_goes_on_with_the_next_batch(source):
    iterator = loader(source)
    take(iterator, 3)
    state = json.loads(json.dumps(iterator.get_state()))
    expected = take(iterator, 3)
    resumed = loader(source)
    resumed.set_state(state)
    assert_equal(take(resumed, 3), expected)


def test_processes_hold_consecutive_blocks_of_the_global_batch(source):
    whole = take(loader(source), 3)
    parts = [take(loader(source, process_index=i, process_count=2), 3) for i in range(2)]
    for batch, first, second in zip(whole, *parts, strict=True):
        assert_equal(batch, jax.tree.map(lambda *blocks: np.concatenate(blocks), first, second))
    with pytest.raises(ValueError, match="divided among 3"):
        loader(source, process_count=3)


def test_worker_processes_give_the_same_batches_and_states(tmp_path, source):
    composed = dataclasses.replace(CONFIG, mosaic_probability=0.5, copy_paste_probability=0.5)
    config = dataclasses.replace(composed, worker_processes=2, workers=1)
    (tmp_path / "pictures" / "3.jpg").write_bytes(b"broken")
    expected = take(loader(source, composed), 4)
    bad_records = BadRecords(1.0)
    iterator = loader(source, config, bad_records=bad_records)
    batches = take(iterator, 2)
    state = json.loads(json.dumps(iterator.get_state()))
    batches += take(iterator, 2)
    iterator.close()
    assert_equal(batches, expected)
    assert 2 <= bad_records.bad <= 3  # counted here, though read there
    resumed = loader(source, config)
    resumed.set_state(state)
    assert_equal(take(resumed, 2), expected[2:])
    resumed.close()


@pytest.mark.parametrize("kind", ["picture", "JSON", "size"])
def test_a_bad_record_leaves_its_slot_empty_and_all_others_as_they_were(tmp_path, kind):
    files = sa1b_files(range(6))
    good = take(loader(Sa1bSource([write_tar(tmp_path / "good.tar", files)])), 6)
    if kind == "picture":
        files["sa_2.jpg"] = files["sa_2.jpg"][:500]
    elif kind == "JSON":
        files["sa_2.json"] = b"{"
    else:
        files["sa_2.jpg"] = files["sa_1.jpg"]
    bad_records = BadRecords(1.0)
    bad = take(loader(Sa1bSource([write_tar(tmp_path / "bad.tar", files)]), bad_records=bad_records), 6)
    changed = 0
    for before, after in zip(good, bad, strict=True):
        for b in range(4):
            if (before.images[b] != after.images[b]).any():
                changed += 1
                assert not after.images[b].any()
                assert not after.valid[b].any()
                assert not after.masks[b].any()
            else:
                assert_equal(*([field[b] for field in jax.tree.leaves(batch)] for batch in (before, after)))
    assert changed == bad_records.bad == 4  # once in each of four epochs
    assert len(bad_records.reasons) == 1


def test_masks_that_cannot_be_read_are_counted_and_their_images_are_used(tmp_path):
    files = sa1b_files(range(4))
    content = json.loads(files["sa_2.json"])
    content["annotations"].append({"segmentation": {"size": [48, 64], "counts": "zz~"}})
    files["sa_2.json"] = json.dumps(content).encode()
    bad_records = BadRecords(0.0)
    take(loader(Sa1bSource([write_tar(tmp_path / "sa.tar", files)]), bad_records=bad_records), 3)
    assert (bad_records.bad, bad_records.masks) == (0, {"run lengths cannot be read": 3})


def test_only_bad_records_stop_the_run(tmp_path, source):
    for path in (tmp_path / "pictures").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match="image cannot be read"):
        take(loader(source), 100)
    with pytest.raises(ValueError, match="no image to validate on out of 6: image cannot be read"):
        fixed_batches(source, 1, model=SMALL, config=CONFIG, loss_size=32, seed=0)
    with pytest.raises(ValueError, match="at least one image"):
        loader([])


def test_validation_batches_are_fixed_without_repetition_and_filled_up(source):
    make = lambda: fixed_batches(source, 5, model=SMALL, config=CONFIG, loss_size=32, seed=0)  # noqa: E731
    batches = make()
    assert_equal(batches, make())
    assert [batch.valid.any(1).tolist() for batch in batches] == [[True] * 4, [True, True, False, False]]
    assert len({image.tobytes() for batch in batches for image in batch.images}) == 7  # and the black one


def prepare(example, **changes):
    config = dataclasses.replace(DataConfig(masks_per_image=8, min_area=1), **changes)
    row = prepare_example(example, np.random.default_rng(0), SMALL.image_size, config, SMALL.image_size, augment=True)
    return stack_rows([row], 8, SMALL.image_size)


def blank(tmp_path, *masks) -> Example:
    path = tmp_path / "blank.png"
    Image.fromarray(np.full((*masks[0].shape, 3), 200, np.uint8)).save(path)
    return Example(path, masks[0].shape, tuple(map(encode_rle, masks)), "test")


def test_masks_of_nearly_the_whole_image_are_dropped_and_slots_left_over_are_not_valid(tmp_path):
    most, part = np.ones((40, 60), bool), np.ones((40, 60), bool)
    most[:3], part[:5] = False, False  # 92.5 and 87.5 per cent
    batch = prepare(blank(tmp_path, most, part, np.ones((40, 60), bool)))
    assert batch.valid.tolist() == [[True] + 7 * [False]]
    assert not batch.masks[0, 1:].any()
    assert not batch.boxes[0, 1:].any()


def test_images_scaled_below_the_frame_leave_padding(tmp_path):
    mask = np.zeros((400, 600), bool)
    mask[100:300, 200:500] = True
    batch = prepare(blank(tmp_path, mask), scale_range=(0.25, 0.25))
    side = SMALL.image_size
    h, w = batch.sizes[0]
    assert (h, w) == (round(side / 6), side // 4)
    assert (batch.images[0, :h, :w] == 200).all()
    assert not batch.images[0, h:].any()
    assert not batch.images[0, :, w:].any()
    assert batch.masks[0, 0].sum() == pytest.approx(0.25 * h * w, rel=0.25)
    assert not batch.masks[0, 0, h:].any()


def test_masks_are_drawn_uniformly(tmp_path):
    masks = [np.zeros((64, 64), bool) for _ in range(6)]
    for i, mask in enumerate(masks):
        mask[10 * i : 10 * i + 8] = True
    example = blank(tmp_path, *masks)
    config = DataConfig(masks_per_image=2, min_area=1)
    counts = np.zeros(6, int)
    rng = np.random.default_rng(0)
    for _ in range(150):
        row = prepare_example(example, rng, SMALL.image_size, config, 64, augment=False)
        counts[[patch.top // 10 for patch in row.patches]] += 1
    assert counts.sum() == 300
    assert counts.min() > 30
