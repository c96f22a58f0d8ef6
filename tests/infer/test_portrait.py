"""Portraits: every kind of image, the choice of a face, and the same landmarks as in the annotation."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from annotate.engines import make_engine
from infer.portrait import MANY_OUTSIDE, find_faces, read_image, read_portrait
from talkinghead.face.model import FaceModel
from talkinghead.geometry.camera import project


@pytest.mark.parametrize(
    "name", ["AniPortrait_lyl.png", "SadTalker_art_6.png", "SadTalker_happy1.png", "SadTalker_full_body_1.png"]
)
def test_every_mode_gives_the_annotation_and_projects_back(media: Path, face_model: FaceModel, name: str) -> None:
    """RGBA, palette, a JPEG called .png: landmarks equal the annotation's, and mesh and pose project onto them."""
    portrait = read_portrait(media / "image" / name, face_model)
    annotated = make_engine("litert", face_model)([portrait.image])
    assert np.array_equal(portrait.face.points, annotated.points[0])
    assert portrait.face.blendshapes is not None
    assert np.array_equal(portrait.face.blendshapes, annotated.blendshapes[0])
    pixels = project(portrait.mesh, portrait.pose_matrix, portrait.width, portrait.height)
    away = pixels - portrait.face.points[:468, :2] * (portrait.width, portrait.height)
    assert np.abs(away).max() < 0.01
    assert portrait.face.outside == 0


def test_exif_orientation(media: Path, face_model: FaceModel) -> None:
    """An image stored sideways, with an EXIF mark for it, is read upright and has the same face."""
    upright = read_portrait(media / "image" / "tfjs-models_portrait.jpg", face_model)
    lying = read_portrait(media / "derived" / "portrait_exif6.jpg", face_model)
    assert lying.image.shape == upright.image.shape
    assert np.abs(lying.face.points[:, :2] - upright.face.points[:, :2]).max() < 0.005


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
    for suffix in ("png", "tiff"):
        file = tmp_path / f"wide.{suffix}"
        Image.fromarray(pixels).save(file, icc_profile=icc_profile(*DISPLAY_P3))
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


def test_several_faces(media: Path, face_model: FaceModel) -> None:
    path = media / "image" / "tfjs-models_three_people.jpg"
    with pytest.raises(ValueError, match=r"3 faces in .*face 0 at x 1\d\d to 2\d\d.*face 2 at .*--face 0 … 2 or"):
        read_portrait(path, face_model)
    faces = [read_portrait(path, face_model, face=str(number)).face for number in range(3)]
    centres = [sum(face.extent[::2]) for face in faces]
    assert centres == sorted(centres), "left to right"
    largest = read_portrait(path, face_model, face="largest").face
    assert largest.extent == faces[1].extent, "the man in the middle"
    for number, pixel in enumerate(("180,140", "400,500", "1040,10")):
        assert read_portrait(path, face_model, face=pixel).face.extent == faces[number].extent
    for choice, message in [("3", "there is no face 3"), ("left", "must be a number"), ("-1", "must be a number")]:
        with pytest.raises(ValueError, match=message):
            read_portrait(path, face_model, face=choice)


@pytest.mark.parametrize("name", ["dlib_dogs.jpg", "scikit-image_chelsea.png"])
def test_no_face(media: Path, face_model: FaceModel, name: str) -> None:
    """A cat, and dogs that the detector takes for a face, but the landmark network does not."""
    with pytest.raises(ValueError, match="no face was found"):
        read_portrait(media / "image" / name, face_model, face="largest")


def test_a_face_cut_by_the_border(media: Path, face_model: FaceModel) -> None:
    portrait = read_portrait(media / "image" / "face_recognition_obama_partial_face.jpg", face_model)
    assert MANY_OUTSIDE < portrait.face.outside < 0.3


def test_transparency_becomes_white(tmp_path: Path) -> None:
    image = np.zeros((4, 6, 4), np.uint8)
    image[:, :3] = (10, 20, 30, 255)
    image[:, 3:, 0] = 200  # red under full transparency
    Image.fromarray(image).save(tmp_path / "a.png")
    found = read_image(tmp_path / "a.png")
    assert (found[:, :3] == (10, 20, 30)).all() and (found[:, 3:] == 255).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "CMYK", "I;16"])
def test_other_modes(tmp_path: Path, mode: str) -> None:
    grey = np.tile(np.array([0, 255], np.uint8), (4, 4))
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    image = deep if mode == "I;16" else Image.fromarray(grey).convert(mode)
    image.save(tmp_path / "a.tif")
    found = read_image(tmp_path / "a.tif")
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


def test_a_decompression_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (200, 200)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match="too large"):
        read_image(tmp_path / "a.png")


def test_an_image_without_content(face_model: FaceModel) -> None:
    assert find_faces(np.zeros((3, 700, 3), np.uint8), face_model) == []
