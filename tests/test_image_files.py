"""What people bring as images: every variant of TIFF and PNG, broken metadata, Pillow images of any mode."""

import io
import struct
import tracemalloc
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from cases.images import make_image
from sam_jax.data.examples import Example
from sam_jax.data.images import decode_image, read_batches, read_image
from sam_jax.errors import BadRecord
from sam_jax.ops.transforms import as_rgb, pillow_to_rgb

H, W = 24, 30
GREY = (np.arange(H)[:, None] * 8 + np.arange(W)).astype(np.uint8)
COLOURS = np.stack([GREY, GREY[::-1], 255 - GREY], -1)
PALETTE = np.random.default_rng(0).integers(0, 256, (256, 3)).astype(np.uint8)
CMYK = np.dstack([COLOURS, GREY // 2])
RGBA = np.dstack([COLOURS, GREY])
TURNED = {  # orientation -> what is to be seen of what is stored
    1: lambda x: x,
    2: np.fliplr,
    3: lambda x: np.rot90(x, 2),
    4: np.flipud,
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: np.rot90(x, 2).swapaxes(0, 1),
    8: np.rot90,
}


def readings(path, size):
    """Reads a file in each of the ways in which the package does."""
    yield "path", read_image(path)
    yield "bytes", decode_image(io.BytesIO(path.read_bytes()), "bytes")
    yield "Pillow image", as_rgb(Image.open(path))
    example = Example(path, size, (), "test")
    yield "example", example.image()
    yield "Pillow image of the example", np.array(example.pil_image())


def check_readings(path, expected, atol=0):
    for way, image in readings(path, expected.shape[:2]):
        assert image.shape == expected.shape, way
        assert image.flags.writeable, way
        assert np.abs(image.astype(int) - expected).max() <= atol, way


def on_white(colours, opacity):
    return np.rint(255 + (colours.astype(float) - 255) * (opacity[..., None] / 255))


def of_cmyk(cmyk):
    return np.rint((255.0 - cmyk[..., :3]) * (255.0 - cmyk[..., 3:]) / 255)


def grey_rgb(values):
    return np.repeat(values[..., None], 3, -1)


def wide(pixels):
    """The same pixels in 16 bits; neither byte of a value is all of it."""
    return pixels.astype(np.uint16) * 257


def planes(pixels):
    return np.moveaxis(pixels, -1, 0)


def tiff(photometric, **options):
    return {"photometric": photometric} | options


OPACITY = {"photometric": "rgb", "extrasamples": ["unassalpha"]}

# name: what is stored, tifffile's options, and the RGB of what tifffile reads
TIFFS = {
    "grey, 1 bit": (GREY > 100, tiff("minisblack"), lambda x: grey_rgb(x * 255)),
    "white is zero, 1 bit": (GREY > 100, tiff("miniswhite"), lambda x: grey_rgb((1 - x) * 255)),
    "grey, 8 bit": (GREY, tiff("minisblack"), grey_rgb),
    "grey, 8 bit, deflated": (GREY, tiff("minisblack", compression="zlib"), grey_rgb),
    "grey, 8 bit, tiles": (GREY, tiff("minisblack", tile=(16, 16)), grey_rgb),
    "white is zero, 8 bit": (GREY, tiff("miniswhite"), lambda x: grey_rgb(255 - x)),
    "grey, 16 bit": (wide(GREY), tiff("minisblack"), lambda x: grey_rgb(x / 257)),
    "grey, 16 bit, deflated": (wide(GREY), tiff("minisblack", compression="zlib"), lambda x: grey_rgb(x / 257)),
    "white is zero, 16 bit": (wide(GREY), tiff("miniswhite"), lambda x: grey_rgb((65535 - x) / 257)),
    "grey, 32 bit": (wide(GREY).astype(np.int32), tiff("minisblack"), lambda x: grey_rgb(x / 257)),
    "grey, unsigned 32 bit": (wide(GREY).astype(np.uint32), tiff("minisblack"), lambda x: grey_rgb(x / 257)),
    "palette": (GREY, tiff("palette", colormap=wide(PALETTE).T), lambda x: PALETTE[x]),
    "colours, 8 bit": (COLOURS, tiff("rgb"), lambda x: x),
    "colours, 16 bit": (wide(COLOURS), tiff("rgb"), lambda x: x / 257),
    "planes": (planes(COLOURS), tiff("rgb", planarconfig="separate"), lambda x: np.moveaxis(x, 0, -1)),
    "opacity": (RGBA, OPACITY, lambda x: on_white(x[..., :3], x[..., 3])),
    "opacity, 16 bit": (wide(RGBA), OPACITY, lambda x: on_white(x[..., :3] / 257, x[..., 3] / 257)),
    "a channel more": (RGBA, tiff("rgb", extrasamples=["unspecified"]), lambda x: x[..., :3]),
    "grey with opacity": (
        np.dstack([GREY, COLOURS[..., 1]]),
        tiff("minisblack", extrasamples=["unassalpha"]),
        lambda x: on_white(grey_rgb(x[..., 0]), x[..., 1]),
    ),
    "CMYK": (CMYK, tiff("separated"), of_cmyk),
    "CMYK, 16 bit": (wide(CMYK), tiff("separated"), lambda x: of_cmyk(x / 257)),
    "CMYK, planes": (
        planes(CMYK),
        tiff("separated", planarconfig="separate"),
        lambda x: of_cmyk(np.moveaxis(x, 0, -1)),
    ),
}


def write_tiff(path, stored, options, orientation=1, byteorder="<"):
    with tifffile.TiffWriter(path, byteorder=byteorder) as file:
        file.write(stored, metadata=None, extratags=[(274, "H", 1, orientation, True)], **options)
    return path


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("name", TIFFS)
def test_a_tiff_of_any_kind_is_read_as_tifffile_reads_it(tmp_path, name, orientation):
    stored, options, to_rgb = TIFFS[name]
    path = write_tiff(tmp_path / "image.tif", stored, options, orientation)
    values = tifffile.imread(path)
    expected = to_rgb(values if name == "palette" else values.astype(float))
    check_readings(path, TURNED[orientation](expected), atol=1)


@pytest.mark.parametrize("name", ["grey, 16 bit", "colours, 8 bit", "colours, 16 bit", "grey, 32 bit", "CMYK"])
def test_a_big_endian_tiff_is_the_same(tmp_path, name):
    stored, options, to_rgb = TIFFS[name]
    path = write_tiff(tmp_path / "image.tif", stored, options, 6, ">")
    check_readings(path, TURNED[6](to_rgb(tifffile.imread(path).astype(float))), atol=1)


@pytest.mark.parametrize(
    ("stored", "options", "advice"),
    [
        (planes(wide(COLOURS)), tiff("rgb", planarconfig="separate"), "store the channels of each pixel together"),
        (GREY.astype(np.float32) / 255, tiff("minisblack"), "scale to 0-255"),
        (wide(GREY).astype(np.int32) * 1000, tiff("minisblack"), "scale to 0-255"),
    ],
)
def test_a_tiff_that_pillow_misreads_or_that_has_no_rgb_form_is_refused(tmp_path, stored, options, advice):
    path = write_tiff(tmp_path / "image.tif", stored, options)
    for read in (
        lambda: read_image(path),
        lambda: as_rgb(Image.open(path)),
        lambda: Example(path, (H, W), (), "test").image(),
    ):
        with pytest.raises(BadRecord, match=rf"image cannot be decoded: .*image\.tif.*{advice}"):
            read()


# PNG, written sample by sample, so that what is right is known without a reader.

GREY_TYPE, RGB_TYPE, PALETTE_TYPE, GREY_OPACITY_TYPE, RGB_OPACITY_TYPE = 0, 2, 3, 4, 6


def png(samples, kind, bits, chunks=()):
    """The file of samples (H, W, C), with further (name, data) chunks before the pixels."""
    h, w = samples.shape[:2]
    rows = samples.reshape(h, -1)
    if bits == 16:
        packed = rows.astype(">u2").tobytes()
        lines = [packed[i : i + len(packed) // h] for i in range(0, len(packed), len(packed) // h)]
    else:
        bitwise = np.unpackbits(rows.astype(np.uint8)[..., None], axis=-1)[..., 8 - bits :].reshape(h, -1)
        lines = [row.tobytes() for row in np.packbits(bitwise, axis=-1)]
    header = struct.pack(">IIBBBBB", w, h, bits, kind, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + line for line in lines))
    parts = [(b"IHDR", header), *chunks, (b"IDAT", pixels), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in parts
    )


def pngs():
    """Yields (name, file, RGB that is right)."""
    rng = np.random.default_rng(1)
    for bits in (1, 2, 4, 8, 16):
        top = 2**bits - 1
        grey = rng.integers(0, top + 1, (H, W, 1))
        grey[0, :3, 0] = 0, top, top // 2
        seen = np.repeat(grey * 255 / top, 3, -1)
        yield f"grey, {bits} bit", png(grey, GREY_TYPE, bits), seen
        clear = int(grey[1, 1, 0])
        shown = np.where(grey == clear, 255, seen)
        yield f"grey, {bits} bit, transparent", png(grey, GREY_TYPE, bits, [(b"tRNS", struct.pack(">H", clear))]), shown
        if bits < 16:
            index, palette = grey % 16, PALETTE[: min(top + 1, 16)]
            chunks = [(b"PLTE", palette.tobytes())]
            yield f"palette, {bits} bit", png(index, PALETTE_TYPE, bits, chunks), PALETTE[index[..., 0]]
            opacity = np.arange(len(palette)).astype(np.uint8) * 15
            chunks.append((b"tRNS", opacity.tobytes()))
            shown = on_white(PALETTE[index[..., 0]], opacity[index[..., 0]])
            yield f"palette, {bits} bit, transparent", png(index, PALETTE_TYPE, bits, chunks), shown
    for bits in (8, 16):
        top = 2**bits - 1
        samples = rng.integers(0, top + 1, (H, W, 4))
        seen = samples * 255 / top
        yield f"colours, {bits} bit", png(samples[..., :3], RGB_TYPE, bits), seen[..., :3]
        clear = (samples[..., :3] == samples[1, 1, :3]).all(-1, keepdims=True)
        chunk = (b"tRNS", struct.pack(">HHH", *samples[1, 1, :3].tolist()))
        shown = np.where(clear, 255, seen[..., :3])
        yield f"colours, {bits} bit, transparent", png(samples[..., :3], RGB_TYPE, bits, [chunk]), shown
        shown = on_white(seen[..., :3], seen[..., 3])
        yield f"colours with opacity, {bits} bit", png(samples, RGB_OPACITY_TYPE, bits), shown
        shown = on_white(np.repeat(seen[..., :1], 3, -1), seen[..., 1])
        yield f"grey with opacity, {bits} bit", png(samples[..., :2], GREY_OPACITY_TYPE, bits), shown


PNGS = {name: (file, right) for name, file, right in pngs()}


@pytest.mark.parametrize("name", PNGS)
def test_a_png_of_any_kind_shows_its_samples(tmp_path, name):
    file, right = PNGS[name]
    (tmp_path / "image.png").write_bytes(file)
    check_readings(tmp_path / "image.png", right, atol=2 if "opacity, 16" in name else 1)


# Metadata.


def exif(orientation, *entries):
    """EXIF of an orientation, and further (tag, type, value of 4 bytes) entries; rationals lie at byte 100."""
    entries = sorted([(0x112, 3, struct.pack("<HH", orientation, 0)), *entries])
    data = b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries))
    data += b"".join(struct.pack("<HHI", tag, kind, 1) + value for tag, kind, value in entries)
    return b"Exif\0\0" + data.ljust(100, b"\0") + struct.pack("<ii", -1, 0)


AT_100 = struct.pack("<I", 100)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WebP"])
@pytest.mark.parametrize(
    "entries",
    [
        [],
        [(0x9204, 10, AT_100)],  # a signed rational -1/0
        [(0x11A, 5, AT_100), (0x9204, 10, AT_100)],
        [(0x8769, 4, struct.pack("<I", 0xFFFFFF))],  # an EXIF folder behind the end
        [(0x9286, 99, b"abcd")],  # no such type
        [(0x10F, 2, struct.pack("<I", 0xFFFFFFF0))],  # a text behind the end
    ],
)
def test_metadata_never_decides_whether_an_image_can_be_read(tmp_path, format, entries):
    path = tmp_path / f"image.{format.lower()}"
    options = {"quality": 100} if format == "JPEG" else {"lossless": True}
    Image.fromarray(grey_rgb(GREY)).save(path, format, exif=exif(6, *entries), **options)
    check_readings(path, TURNED[6](grey_rgb(GREY)), atol=3)


@pytest.mark.parametrize("data", [b"Exif\0\0", b"Exif\0\0II*\0", b"Exif\0\0" + bytes(40), exif(6)[:20], exif(99)])
def test_exif_that_says_no_orientation_leaves_the_image_as_it_is(tmp_path, data):
    Image.fromarray(grey_rgb(GREY)).save(tmp_path / "image.jpg", exif=data, quality=100)
    check_readings(tmp_path / "image.jpg", grey_rgb(GREY), atol=3)


# Images of Pillow.

MODES = (
    "1",
    "L",
    "LA",
    "La",
    "P",
    "PA",
    "RGB",
    "RGBX",
    "RGBA",
    "RGBa",
    "CMYK",
    "YCbCr",
    "HSV",
    "LAB",
    "I",
    "I;16",
    "I;16B",
)


@pytest.mark.parametrize("mode", MODES)
def test_a_pillow_image_of_any_mode_is_taken_as_pillow_converts_it(mode):
    start = Image.fromarray(COLOURS)
    before = {"La": "LA", "RGBa": "RGBA", "I": "L", "I;16": "L", "I;16B": "L", "PA": "L"}.get(mode, "RGB")
    image = start.quantize(16) if mode == "P" else start.convert(before).convert(mode)
    expected = np.asarray((image.convert("LA") if mode == "La" else image).convert("RGB"))
    np.testing.assert_array_equal(as_rgb(image), expected)
    np.testing.assert_array_equal(as_rgb(image, "BGR"), expected[..., ::-1])


def test_a_float_pillow_image_and_one_without_pixels_are_refused():
    with pytest.raises(BadRecord, match=r"mode F.*scale to 0-255"):
        as_rgb(Image.new("F", (3, 2)))
    with pytest.raises(ValueError, match="at least one pixel"):
        as_rgb(Image.new("RGB", (0, 3)))


# Memory, and files that are damaged.


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "I;16", "RGB"])
def test_conversion_takes_at_most_ten_bytes_a_pixel(mode):
    side = 1500
    image = Image.new("L" if mode == "I;16" else "RGB", (side, side)).convert(mode)
    image.info |= {"transparency": 0} if mode == "P" else {}
    image.getexif()[0x112] = 6
    tracemalloc.start()
    try:
        assert pillow_to_rgb(image).shape == (side, side, 3)
        assert tracemalloc.get_traced_memory()[1] <= 10 * side**2
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "error", [struct.error("x"), SyntaxError("x"), MemoryError(), OverflowError("x"), KeyError("x")]
)
def test_whatever_a_decoder_raises_is_that_images_failure(tmp_path, monkeypatch, error):
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for path in paths:
        Image.fromarray(make_image(4, 5)).save(path)
    opened = Image.open

    def open_bad(source):
        image = opened(source)
        if Path(source.name) == paths[1]:
            raise error
        return image

    monkeypatch.setattr(Image, "open", open_bad)
    failures = {}
    with ThreadPoolExecutor(1) as readers:
        batches = read_batches(readers, paths, read_image, 2, failures.__setitem__)
        assert [[path for path, _ in batch] for batch in batches] == [[paths[0], paths[2]]]
    assert list(failures) == paths[1:2]
    assert "image takes more memory" in failures[paths[1]] or "image cannot be decoded" in failures[paths[1]]


def test_memory_that_is_short_after_decoding_is_that_images_failure():
    def read(number):
        if number == 1:
            raise MemoryError
        return number

    failures = {}
    with ThreadPoolExecutor(1) as readers:
        assert list(read_batches(readers, range(3), read, 3, failures.__setitem__)) == [[(0, 0), (2, 2)]]
    assert failures == {1: "the image takes more memory than there is"}
