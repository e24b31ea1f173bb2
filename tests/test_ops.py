"""Image, prompt and mask operations against what they imitate: Pillow's resize, torch's interpolate, COCO."""

import io
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cases.images import make_image
from cases.models import SMALL
from sam_jax import Prompt
from sam_jax.data.images import read_image
from sam_jax.ops import transforms
from sam_jax.ops.draw import add_caption, cut_out, draw_masks
from sam_jax.ops.masks import to_original_frame
from sam_jax.ops.rle import coco_bbox, decode_rle, encode_rle, rle_area, sa1b_bbox
from sam_jax.ops.transforms import as_rgb, fit_image, input_size
from sam_jax.prompting.prompts import PROMPT_BUCKETS, bucket, pack_prompts
from sam_jax.types import NOT_A_POINT, PAD

sizes = st.tuples(st.integers(1, 3000), st.integers(1, 3000))


# Reading files


def test_a_jpeg_turned_by_exif_comes_upright(tmp_path):
    upright = np.zeros((10, 30, 3), np.uint8)
    upright[:, :15] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its left side: to be turned 90 degrees clockwise
    Image.fromarray(np.rot90(upright)).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "turned.png"), upright)


def test_grey_palette_bilevel_and_cmyk_files_become_the_same_rgb(tmp_path):
    grey = Image.fromarray((make_image(7, 5, 1)[..., 0] > 127).astype(np.uint8) * 255)
    expected = np.asarray(grey.convert("RGB"))
    for mode, name in [("L", "a.png"), ("P", "b.png"), ("1", "c.png"), ("CMYK", "d.tif"), ("LA", "e.png")]:
        grey.convert(mode).save(tmp_path / name)
        np.testing.assert_array_equal(read_image(tmp_path / name), expected, err_msg=mode)


def test_transparent_parts_become_white(tmp_path):
    image = make_image(4, 6, 4)
    image[:2, :, 3], image[2:, :, 3] = 0, 255
    Image.fromarray(image).save(tmp_path / "rgba.png")
    rgb = read_image(tmp_path / "rgba.png")
    assert (rgb[:2] == 255).all()
    np.testing.assert_array_equal(rgb[2:], image[2:, :, :3])
    palette = Image.fromarray(make_image(4, 6)).quantize(4)
    palette.save(tmp_path / "palette.png", transparency=palette.getpixel((0, 0)))
    np.testing.assert_array_equal(read_image(tmp_path / "palette.png")[0, 0], 255)


@pytest.mark.parametrize("bits", [10, 12, 16])
def test_a_16_bit_file_keeps_its_contrast_however_many_bits_are_used(tmp_path, bits):
    values = np.linspace(0, 2**bits - 1, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(values).save(tmp_path / "deep.png")
    rgb = read_image(tmp_path / "deep.png")
    np.testing.assert_allclose(rgb[..., 0], values / (2**bits - 1) * 255, atol=0.5)


def test_a_one_pixel_file_is_an_image(tmp_path):
    Image.fromarray(make_image(1, 1)).save(tmp_path / "dot.png")
    assert read_image(tmp_path / "dot.png").shape == (1, 1, 3)


def test_a_file_that_is_no_readable_image_is_named(tmp_path):
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("no image")
    buffer = io.BytesIO()
    Image.fromarray(make_image(64, 64)).save(buffer, "JPEG")
    (tmp_path / "cut.jpg").write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    Image.fromarray(np.full((4, 4), 0.5, np.float32)).save(tmp_path / "float.tif")
    cases = {"empty.jpg": "empty", "text.jpg": "expected JPEG", "cut.jpg": "truncated", "float.tif": "scale to 0-255"}
    for name, message in cases.items():
        with pytest.raises(ValueError, match=message) as error:
            read_image(tmp_path / name)
        assert name in str(error.value)
    with pytest.raises(ValueError, match="folder"):
        read_image(tmp_path)
    with pytest.raises(FileNotFoundError, match="missing"):
        read_image(tmp_path / "missing.jpg")


def test_a_huge_image_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    Image.fromarray(make_image(10, 20)).save(tmp_path / "big.png")
    with pytest.raises(ValueError, match=r"20 x 10 pixels.*scale it down"):
        read_image(tmp_path / "big.png", max_pixels=100)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 60)  # 200 pixels are a bomb to Pillow from 120 on
    with pytest.raises(ValueError, match="scale it down"):
        read_image(tmp_path / "big.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 150)  # and worth a warning from 150 on, which is not passed on
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image(tmp_path / "big.png").shape == (10, 20, 3)


# Arrays as images


def test_channel_orders_and_depths_mean_what_they_show():
    rgb = make_image(5, 4)
    opaque = np.concatenate([rgb, np.full((5, 4, 1), 255, np.uint8)], -1)
    np.testing.assert_array_equal(as_rgb(rgb[..., ::-1], "BGR"), rgb)
    np.testing.assert_array_equal(as_rgb(opaque), rgb)
    np.testing.assert_array_equal(as_rgb(opaque[..., [2, 1, 0, 3]], "BGR"), rgb)
    np.testing.assert_array_equal(as_rgb(rgb.astype(np.uint16) * 257), rgb)
    for grey in (rgb[..., 0], rgb[..., :1]):
        np.testing.assert_array_equal(as_rgb(grey), np.repeat(rgb[..., :1], 3, -1))


@pytest.mark.parametrize(
    ("image", "error", "advice"),
    [
        (np.zeros((4, 4, 3)), TypeError, "scale to 0-255"),
        ("cat.jpg", TypeError, "read_image"),
        (np.zeros((3, 4, 5), np.uint8), ValueError, "transpose"),
        (np.zeros((4, 4, 2), np.uint8), ValueError, r"\(H, W, 3\)"),
        (np.zeros((0, 4, 3), np.uint8), ValueError, "at least one pixel"),
    ],
)
def test_what_is_no_image_is_answered_with_advice(image, error, advice):
    with pytest.raises(error, match=advice):
        as_rgb(image)


def test_an_unknown_channel_order_is_an_error():
    with pytest.raises(ValueError, match="'RGB' or 'BGR', got 'rgb'"):
        as_rgb(make_image(2, 2), "rgb")


# Frames


@given(size=sizes, side=st.sampled_from([64, 256, 1024]))
def test_the_longer_side_fills_the_frame_and_the_other_is_rounded_half_up(size, side):
    h, w = input_size(size, side)
    assert max(h, w) == side
    for length, original in zip((h, w), size, strict=True):
        assert length == max(1, np.floor(original * (side / max(size)) + 0.5))


def test_an_image_is_resized_as_pillow_does_and_padded_with_zeros():
    image = make_image(60, 90)
    frame, size = fit_image(image, 64)
    assert size == (43, 64)
    expected = Image.fromarray(image).resize((64, 43), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(frame[:43], np.asarray(expected))
    assert (frame[43:] == 0).all()


def test_an_image_one_pixel_high_keeps_a_row():
    assert fit_image(make_image(1, 900), 64)[1] == (1, 64)


@given(size=sizes, x=st.floats(0, 1), y=st.floats(0, 1))
def test_points_go_to_the_input_frame_and_boxes_come_back(size, x, y):
    H, W = size
    point = np.array([x * W, y * H])
    there = transforms.points_to_input(point, size, 1024)
    h, w = input_size(size, 1024)
    np.testing.assert_allclose(there, [x * w, y * h], atol=1e-6)
    box = np.concatenate([point, point])
    np.testing.assert_allclose(transforms.boxes_to_original(np.tile(there, 2), size, 1024), box, atol=1e-6)


# Prompts


@given(count=st.integers(0, 1000))
def test_a_bucket_holds_the_count_and_there_are_few(count):
    assert bucket(count, PROMPT_BUCKETS) >= count
    assert bucket(count, PROMPT_BUCKETS) in PROMPT_BUCKETS or bucket(count, PROMPT_BUCKETS) % PROMPT_BUCKETS[-1] == 0


def test_ragged_prompts_share_one_shape_and_the_rest_is_padding():
    box = Prompt(box=np.array([5, 5, 30, 30]))
    clicks = Prompt(np.array([[1, 2], [3, 4], [5, 6]]), np.array([1, 0, 1]))
    packed = pack_prompts([[box, clicks], [box]], [(40, 64), (64, 64)], SMALL)
    assert packed.points.shape == (2, 4, 4, 2)
    np.testing.assert_array_equal(
        packed.labels,
        [
            [[2, 3, PAD, PAD], [1, 0, 1, NOT_A_POINT], [PAD] * 4, [PAD] * 4],
            [[2, 3, PAD, PAD], [PAD] * 4, [PAD] * 4, [PAD] * 4],
        ],
    )
    assert packed.mask_logits is None


def test_masks_of_some_prompts_leave_the_others_without():
    side = SMALL.low_res_size
    mask = np.random.default_rng(0).normal(size=(1, side, side))
    packed = pack_prompts([[Prompt(), Prompt(mask=mask)]], [(64, 64)], SMALL)
    np.testing.assert_array_equal(packed.has_mask, [[False, True, False, False]])
    np.testing.assert_allclose(packed.mask_logits[0, 1], mask[0], rtol=1e-6)


def test_an_empty_list_of_clicks_still_brings_the_padding_point_as_in_the_official_code():
    packed = pack_prompts([[Prompt(np.zeros((0, 2)), np.zeros(0))]], [(64, 64)], SMALL)
    np.testing.assert_array_equal(packed.labels, [[[NOT_A_POINT, PAD]]])


def test_a_box_that_sticks_out_is_cut_to_the_image():
    packed = pack_prompts([[Prompt(box=np.array([-5, 10, 70.5, 32]))]], [(32, 64)], SMALL)
    np.testing.assert_array_equal(packed.points[0, 0, :2], [[0, 10], [64, 32]])


def test_a_thresholded_mask_is_not_taken_for_logits():
    with pytest.raises(ValueError, match="logits, got a mask of dtype bool"):
        pack_prompts([[Prompt(mask=np.ones((SMALL.low_res_size,) * 2, bool))]], [(32, 64)], SMALL)


# Masks


@settings(deadline=None, max_examples=12)
@given(size=st.tuples(st.integers(1, 150), st.integers(1, 150)))
def test_logits_reach_the_original_frame_as_through_two_torch_interpolations(size):
    S, side = SMALL.low_res_size, SMALL.image_size
    logits = np.random.default_rng(0).normal(size=(2, 3, S, S)).astype(np.float32)
    h, w = input_size(size, side)
    expected = torch.nn.functional.interpolate(torch.from_numpy(logits), (side, side), mode="bilinear")
    expected = torch.nn.functional.interpolate(expected[..., :h, :w], size, mode="bilinear").numpy()
    result = np.asarray(to_original_frame(logits, size, SMALL, return_logits=True))
    np.testing.assert_allclose(result, expected, atol=3e-5)
    masks = np.asarray(to_original_frame(logits, size, SMALL))
    assert masks.dtype == bool
    np.testing.assert_array_equal(masks, result > 0)


def test_logits_of_another_size_are_an_error():
    with pytest.raises(ValueError, match="32 x 32"):
        to_original_frame(np.zeros((1, 16, 16), np.float32), (5, 5), SMALL)


@given(data=st.data(), size=st.tuples(st.integers(1, 20), st.integers(1, 20)))
def test_run_lengths_restore_the_mask_its_area_and_its_box(data, size):
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=size[0] * size[1], max_size=size[0] * size[1])))
    mask = mask.reshape(size)
    rle = encode_rle(mask)
    np.testing.assert_array_equal(decode_rle(rle), mask)
    np.testing.assert_array_equal(decode_rle(rle | {"counts": rle["counts"].encode()}), mask)
    assert rle_area(rle) == mask.sum()
    rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if mask.any():
        assert coco_bbox(rle) == [cols[0], rows[0], cols[-1] - cols[0] + 1, rows[-1] - rows[0] + 1]
        assert sa1b_bbox(rle) == [cols[0], rows[0], cols[-1] - cols[0], rows[-1] - rows[0]]
    else:
        assert coco_bbox(rle) == sa1b_bbox(rle) == [0, 0, 0, 0]


# Drawing


def test_masks_colour_their_pixels_and_nothing_else():
    image = np.full((60, 80, 3), 100, np.uint8)
    masks = np.zeros((2, 60, 80), bool)
    masks[0, 10:30, 10:30], masks[1, 35:55, 50:75] = True, True
    drawn = draw_masks(image, masks)
    assert (image == 100).all()
    outside = np.ones((60, 80), bool)
    outside[8:32, 8:32] = outside[33:57, 48:77] = False  # masks and their outlines
    assert (drawn[outside] == 100).all()
    assert (drawn[20, 20] != 100).any()
    assert (drawn[20, 20] != drawn[45, 60]).any()


def test_prompts_are_drawn_foreground_green_background_red():
    drawn = draw_masks(np.zeros((60, 80, 3), np.uint8), [], [(20, 20), (60.4, 40.2)], [1, 0], [(2, 2, 77, 57)])
    for x, y, strongest in [(20, 20, 1), (60, 40, 0), (2, 30, 1)]:
        assert drawn[y, x].argmax() == strongest


def test_a_cut_out_keeps_the_masks_pixels_and_leaves_white():
    image = np.full((40, 60, 3), (10, 100, 200), np.uint8)
    mask = np.zeros((40, 60), bool)
    mask[10:30, 20:50] = True
    result = cut_out(image, mask)
    np.testing.assert_array_equal(result[14:26, 24:46], image[14:26, 24:46])
    assert (result[:6] == 255).all()
    assert (result[:, :16] == 255).all()


def test_a_caption_stands_above_the_image():
    image = np.full((40, 200, 3), 7, np.uint8)
    result = add_caption(image, "cup 0.93")
    np.testing.assert_array_equal(result[-40:], image)
    assert result[:-40].min() < 100 < result[:-40].mean()
