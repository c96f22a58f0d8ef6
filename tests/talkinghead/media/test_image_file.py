"""Image files: every kind that is meant and no other, upright and in sRGB, and none that asks for more than it may."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image, ImageCms

from talkinghead.media.image_file import header_size, read_image
from talkinghead.media.limits import IMAGE_BYTES, IMAGE_PIXELS
from tests.support.hostile_media import png, png_chunk
from tests.support.limited_call import Called, call_limited


def icc_profile(*primaries: tuple[float, float, float]) -> bytes:
    """A colour profile (ICC.1:2001-04, matrix and gamma 2.2) with these columns of red, green and blue in XYZ (D50)."""

    def fixed(*numbers: float) -> bytes:
        return struct.pack(f">{len(numbers)}i", *(round(number * 65536) for number in numbers))

    white = (0.9642, 1.0, 0.8249)
    tags = {b"wtpt": b"XYZ \0\0\0\0" + fixed(*white)}
    tags |= {b"%cXYZ" % name: b"XYZ \0\0\0\0" + fixed(*column) for name, column in zip(b"rgb", primaries, strict=True)}
    tags |= {b"%cTRC" % name: b"curv\0\0\0\0" + struct.pack(">IHxx", 1, round(2.2 * 256)) for name in b"rgb"}
    tags[b"desc"] = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"wide\0" + bytes(79)
    table, body, place = b"", b"", 132 + 12 * len(tags)
    for name, content in tags.items():
        table += name + struct.pack(">II", place + len(body), len(content))
        body += content
    header = struct.pack(">I4sI4s4s4s12x4s28x", place + len(body), b"", 0x02100000, b"mntr", b"RGB ", b"XYZ ", b"acsp")
    return header + fixed(*white) + bytes(48) + struct.pack(">I", len(tags)) + table + body


DISPLAY_P3 = ((0.51512, 0.2412, -0.00105), (0.29198, 0.69225, 0.04189), (0.1571, 0.06657, 0.78407))


def test_colours_are_those_of_the_images_own_profile(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Pure red of sRGB has other values in Display P3; without a usable profile, values stay."""
    pixels = np.array([[[234, 51, 35], [128, 128, 128]]], np.uint8)
    for suffix in ("png", "webp"):
        file = tmp_path / f"wide.{suffix}"
        Image.fromarray(pixels).save(file, icc_profile=icc_profile(*DISPLAY_P3), lossless=True)
        found = read_image(file).astype(int)
        assert np.abs(found - [[[255, 0, 0], [128, 128, 128]]]).max() <= 15, found
    Image.fromarray(pixels).convert("RGBA").save(tmp_path / "clear.png", icc_profile=icc_profile(*DISPLAY_P3))
    assert np.array_equal(read_image(tmp_path / "clear.png"), read_image(tmp_path / "wide.png"))
    indexed = Image.fromarray(pixels).quantize(2)
    indexed.save(tmp_path / "palette.png", icc_profile=icc_profile(*DISPLAY_P3))
    assert np.array_equal(read_image(tmp_path / "palette.png"), read_image(tmp_path / "wide.png"))
    see_through = {"icc_profile": icc_profile(*DISPLAY_P3), "transparency": (128, 128, 128)}
    Image.fromarray(pixels).save(tmp_path / "key.png", **see_through)
    assert read_image(tmp_path / "key.png")[0, 1].tolist() == [255, 255, 255]
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(pixels).save(tmp_path / "srgb.png", icc_profile=srgb)
    assert np.array_equal(read_image(tmp_path / "srgb.png"), pixels) and not caplog.text
    Image.fromarray(pixels).save(tmp_path / "broken.png", icc_profile=b"no profile")
    assert np.array_equal(read_image(tmp_path / "broken.png"), pixels)
    assert "broken.png cannot be used" in caplog.text


def test_transparency_becomes_white(tmp_path: Path) -> None:
    image = np.zeros((4, 6, 4), np.uint8)
    image[:, :3] = (10, 20, 30, 255)
    image[:, 3:, 0] = 200  # red under full transparency
    Image.fromarray(image).save(tmp_path / "a.png")
    found = read_image(tmp_path / "a.png")
    assert (found[:, :3] == (10, 20, 30)).all() and (found[:, 3:] == 255).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "I;16"])
def test_other_modes(tmp_path: Path, mode: str) -> None:
    grey = np.tile(np.array([0, 255], np.uint8), (4, 4))
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    image = deep if mode == "I;16" else Image.fromarray(grey).convert(mode)
    image.save(tmp_path / "a.png")
    found = read_image(tmp_path / "a.png")
    assert found.shape == (4, 8, 3) and found.dtype == np.uint8
    assert np.abs(found.astype(int) - grey[..., None]).max() <= 1


def test_files_that_are_no_images(tmp_path: Path, media: Path) -> None:
    whole = (media / "image" / "AniPortrait_Aragaki.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty.png").touch()
    for name, message in [
        ("cut.png", "damaged"),
        ("text.png", "not an image"),
        ("empty.png", "not an image"),
        ("gone.png", "is not there"),
        (".", "is a folder"),
    ]:
        with pytest.raises(ValueError, match=message):
            read_image(tmp_path / name)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_every_orientation_is_turned_upright(tmp_path: Path, suffix: str) -> None:
    """As EXIF 2.3 draws them: the place of the stored image's first row and column."""
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:8, :16] = 250  # light in the top left corner
    turns = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }
    for orientation, stored in turns.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        file = tmp_path / f"{orientation}.{suffix}"
        Image.fromarray(np.ascontiguousarray(stored(upright))).save(file, exif=exif, quality=100)
        assert np.abs(read_image(file).astype(int) - upright).mean() < 3, orientation


def test_an_animation_is_read_as_its_first(tmp_path: Path) -> None:
    images = [Image.new("RGB", (8, 8), (20 * number, 0, 0)) for number in range(5)]
    for name in ("a.png", "a.webp"):
        images[1].save(tmp_path / name, save_all=True, append_images=images[2:], lossless=True)
        assert (read_image(tmp_path / name) == (20, 0, 0)).all()


def test_a_printer_program_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow would start Ghostscript for Encapsulated PostScript, also where it is named .png."""
    program = tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {tmp_path / 'was-run'}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    file = tmp_path / "a.png"
    file.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n")
    with Image.open(file) as opened:
        assert opened.format == "EPS", "Pillow takes it for what it is"
    with pytest.raises(ValueError, match="is not an image that can be read: take a PNG, JPEG, WebP or BMP"):
        read_image(file)
    with pytest.raises(ValueError, match="is not an image"):
        header_size(file.read_bytes(), "a.png")
    assert not (tmp_path / "was-run").exists()


@pytest.mark.parametrize("kind", ["TIFF", "GIF", "ICO", "PPM", "TGA", "PDF", "SGI", "DDS", "JPEG2000", "ICNS", "AVIF"])
def test_other_formats_are_refused_whatever_their_name(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "a.png"
    try:
        Image.new("RGB", (32, 32)).save(file, format=kind)
    except (KeyError, OSError):
        pytest.skip(f"this Pillow writes no {kind}")
    with pytest.raises(ValueError, match="is not an image that can be read"):
        read_image(file)


def called(path: Path, most: float) -> Called:
    code = "from pathlib import Path\nfrom talkinghead.media.image_file import read_image\n"
    found = call_limited(code + "def call(path): return read_image(Path(path)).shape", path)
    assert found.memory < most, found
    return found


def test_the_header_tells_the_size_before_a_pixel_is_decoded(tmp_path: Path) -> None:
    bomb = png(tmp_path / "bomb.png", 32_000, 32_000)
    assert bomb.stat().st_size < 200_000
    assert "is too large" in called(bomb, 20e6).said
    above = png(tmp_path / "above.png", 9_000, 6_000)
    assert IMAGE_PIXELS < 9_000 * 6_000
    assert f"the image {above} is too large: 9000x6000 pixels" in called(above, 20e6).said
    for file in (bomb, above):
        with pytest.raises(ValueError, match="is too large"):
            header_size(file.read_bytes(), str(file))
    small = png(tmp_path / "small.png", 200, 100, colour=2, depth=8)
    assert header_size(small.read_bytes(), str(small)) == (200, 100)


def test_an_animation_of_a_huge_canvas_is_refused(tmp_path: Path) -> None:
    images = [Image.new("RGB", (64, 64), (80 * number, 0, 0)) for number in range(3)]
    file = tmp_path / "a.webp"
    images[0].save(file, save_all=True, append_images=images[1:])
    data = bytearray(file.read_bytes())
    canvas = data.index(b"VP8X") + 12
    data[canvas : canvas + 6] = (16_382).to_bytes(3, "little") * 2
    file.write_bytes(data)
    assert "is too large" in called(file, 20e6).said


def test_the_largest_image_takes_a_part_of_a_gigabyte(tmp_path: Path) -> None:
    """With transparency and a profile every step once made a copy of the whole."""
    profile = png_chunk(b"iCCP", b"wide\0\0" + zlib.compress(icc_profile(*DISPLAY_P3)))
    file = png(tmp_path / "a.png", 8192, 6144, colour=6, depth=8, chunks=profile)
    assert called(file, 500e6).said == "(6144, 8192, 3)"


@pytest.mark.parametrize("kind", ["profile", "texts"])
def test_compressed_chunks_are_not_unpacked_without_end(tmp_path: Path, kind: str) -> None:
    if kind == "profile":
        chunks = png_chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(1 << 30), 9))
    else:
        chunks = b"".join(png_chunk(b"zTXt", b"a%d\0\0" % n + zlib.compress(bytes(10**6), 9)) for n in range(500))
    file = png(tmp_path / "a.png", 8, 8, colour=2, depth=8, chunks=chunks)
    found = called(file, 100e6)
    assert "is damaged or cannot be read" in found.said and "\n" not in found.said


def test_files_that_are_too_long_or_no_files(tmp_path: Path) -> None:
    holes = png(tmp_path / "holes.png", 8, 8, colour=2, depth=8)
    with holes.open("r+b") as stream:
        stream.truncate(IMAGE_BYTES + 1)
    with pytest.raises(ValueError, match="is too large: 268,435,457 bytes"):
        read_image(holes)
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ValueError, match="is a named pipe"):
        read_image(tmp_path / "pipe.png")


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\x01\x12" * 40, b"x"]
)
def test_odd_orientations_do_no_harm(tmp_path: Path, exif: bytes) -> None:
    """An unreadable block is an error in one line or is passed over."""
    file = tmp_path / "a.jpg"
    Image.new("RGB", (16, 8)).save(file, exif=exif)
    try:
        assert read_image(file).shape in {(8, 16, 3), (16, 8, 3)}
    except ValueError as error:
        assert str(file) in str(error) and "\n" not in str(error)


def large_jpeg(path: Path, width: int, height: int, *, progressive: bool = False) -> Path:
    """A grey JPEG, light in its top left quarter: one byte a pixel while it is made."""
    image = Image.new("L", (width, height), 40)
    image.paste(200, (0, 0, width // 2, height // 2))
    image.save(path, quality=60, progressive=progressive)
    return path


@pytest.mark.parametrize(("width", "height"), [(12_000, 9_000), (16_320, 12_240)])
def test_photos_of_108_and_200_megapixels_are_read_at_half_their_size(
    tmp_path: Path, width: int, height: int, caplog: pytest.LogCaptureFixture
) -> None:
    """In half a gigabyte; Pillow itself refuses to open the larger one, whose pixels take 800 MB."""
    caplog.set_level("INFO")
    file = large_jpeg(tmp_path / "a.jpg", width, height)
    assert called(file, 500e6).said == str((height // 2, width // 2, 3))
    if width == 12_000:
        found = read_image(file)
        assert np.abs(found[[10, 10, -10], [10, -10, 10]].astype(int) - [[200], [40], [40]]).max() <= 2
        assert "has 108 megapixels: it is read at 1/2 of its size, 6000x4500" in caplog.text
        with pytest.raises(ValueError, match=r"12000x9000 pixels, and 50 million"):
            header_size(file.read_bytes(), "a.jpg")


def test_a_jpeg_up_to_the_limit_is_read_as_it_is(tmp_path: Path) -> None:
    file = large_jpeg(tmp_path / "a.jpg", 8192, 6144)
    assert called(file, 500e6).said == "(6144, 8192, 3)"


def test_what_is_still_too_large_says_what_to_do(tmp_path: Path) -> None:
    """A progressive JPEG holds the coefficients of the whole image while it is decoded; a PNG has no smaller size."""
    progressive = large_jpeg(tmp_path / "p.jpg", 12_400, 10_400, progressive=True)
    assert "save it as a baseline JPEG (not progressive)" in called(progressive, 20e6).said
    data = bytearray(large_jpeg(tmp_path / "huge.jpg", 64, 64).read_bytes())
    place = data.index(b"\xff\xc0") + 5
    data[place : place + 4] = struct.pack(">HH", 60_000, 60_000)
    (tmp_path / "huge.jpg").write_bytes(data)
    assert "and 268 million in all are the most" in called(tmp_path / "huge.jpg", 20e6).said
    assert (
        "or save it as a JPEG, of which larger ones are read"
        in called(png(tmp_path / "a.png", 16_000, 12_000), 20e6).said
    )
