"""Pictures from files: their orientation, colours and sizes, and files that hold no picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from captum_cav import zoo
from captum_cav.errors import (
    InputError,
)

# Files and the command line ------------------------------------------------------------------------------------------


def saved(picture: Image.Image, path: Path, **options: Any) -> Path:
    picture.save(path, **options)
    return path


def corner() -> Image.Image:
    """Black, with a white top left quarter."""
    made = Image.new("RGB", (8, 4))
    made.paste((255, 255, 255), (0, 0, 4, 2))
    return made


def test_pictures_of_every_kind(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned by a quarter to the right
    grey16 = Image.fromarray((np.asarray(corner().convert("L")).astype(np.uint16)) * 257)
    cases = {
        "palette": saved(corner().quantize(2), tmp_path / "palette.png"),
        "grey": saved(corner().convert("L"), tmp_path / "grey.png"),
        "16 bit": saved(grey16, tmp_path / "deep.png"),
        "one bit": saved(corner().convert("1"), tmp_path / "bit.png"),
        "CMYK": saved(corner().convert("CMYK"), tmp_path / "cmyk.tiff"),
        "alpha": saved(corner().convert("RGBA"), tmp_path / "alpha.png"),
    }
    expected = np.asarray(corner()).astype(int)
    for kind, path in cases.items():
        opened = zoo.open_picture(path)
        assert opened.mode == "RGB", kind
        assert np.abs(np.asarray(opened).astype(int) - expected).max() <= 1, kind
    opened = zoo.open_picture(saved(corner(), tmp_path / "turned.png", exif=turned))
    assert opened.size == (4, 8)
    assert np.array_equal(np.asarray(opened), np.rot90(np.asarray(corner()), -1))


class TestPictures:
    def test_the_demo_picture(self) -> None:
        picture = zoo.demo_picture()
        assert (picture.mode, picture.size) == ("RGB", (448, 448))

    def test_orientation_is_applied(self, tmp_path: Path) -> None:
        picture = Image.new("RGB", (40, 20), "red")
        picture.paste("blue", (0, 0, 20, 20))
        exif = Image.Exif()
        exif[0x0112] = 6  # the camera was turned: show it rotated by 90 degrees clockwise
        picture.save(tmp_path / "turned.png", exif=exif)
        opened = zoo.open_picture(tmp_path / "turned.png")
        assert opened.size == (20, 40)
        assert opened.getpixel((10, 5)) == (0, 0, 255)
        assert opened.getpixel((10, 35)) == (255, 0, 0)

    @pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
    def test_transparent_parts_become_white(self, mode: str, tmp_path: Path) -> None:
        picture = Image.new("RGBA", (2, 1), (0, 0, 0, 255))
        picture.putpixel((1, 0), (0, 0, 0, 0))
        picture.convert(mode).save(tmp_path / "clear.png")
        opened = zoo.open_picture(tmp_path / "clear.png")
        assert opened.mode == "RGB"
        assert [opened.getpixel((x, 0)) for x in (0, 1)] == [(0, 0, 0), (255, 255, 255)]

    def test_half_transparent_parts_are_mixed_with_white(self, tmp_path: Path) -> None:
        Image.new("RGBA", (1, 1), (255, 0, 0, 127)).save(tmp_path / "half.png")
        assert zoo.open_picture(tmp_path / "half.png").getpixel((0, 0)) == pytest.approx((255, 128, 128), abs=1)

    def test_grey_of_16_bit_is_not_clipped(self, tmp_path: Path) -> None:
        grey = np.array([[0, 256 * 100, 65535]], dtype=np.uint16)
        Image.fromarray(grey).save(tmp_path / "deep.png")
        opened = zoo.open_picture(tmp_path / "deep.png")
        assert np.asarray(opened)[0].tolist() == [[0, 0, 0], [100, 100, 100], [255, 255, 255]]

    def test_grey_and_cmyk_become_rgb(self, tmp_path: Path) -> None:
        Image.new("L", (1, 1), 77).save(tmp_path / "grey.png")
        assert zoo.open_picture(tmp_path / "grey.png").getpixel((0, 0)) == (77, 77, 77)
        Image.new("CMYK", (8, 8), (0, 0, 0, 0)).save(tmp_path / "print.jpg")
        assert zoo.open_picture(tmp_path / "print.jpg").getpixel((4, 4)) == (255, 255, 255)

    def refused(self, path: Path) -> str:
        with pytest.raises(InputError) as caught:
            zoo.open_picture(path)
        assert str(caught.value).startswith(f"cannot open the picture {path}: ")
        return str(caught.value).removeprefix(f"cannot open the picture {path}: ")

    def test_a_text_file(self, tmp_path: Path) -> None:
        (tmp_path / "text.png").write_text("no picture")
        assert "cannot identify image file" in self.refused(tmp_path / "text.png")

    def test_a_missing_file_and_a_folder(self, tmp_path: Path) -> None:
        assert self.refused(tmp_path / "none.png") == "No such file or directory"
        assert self.refused(tmp_path)

    def test_a_truncated_picture(self, tmp_path: Path) -> None:
        zoo.demo_picture().save(tmp_path / "whole.png")
        content = (tmp_path / "whole.png").read_bytes()
        for length in (len(content) // 2, 40, 20):
            (tmp_path / "cut.png").write_bytes(content[:length])
            assert self.refused(tmp_path / "cut.png")

    def test_a_picture_with_too_many_pixels_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        Image.new("L", (300, 300)).save(tmp_path / "bomb.png")
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
        assert "decompression bomb" in self.refused(tmp_path / "bomb.png")

    def test_pixels_without_a_range(self, tmp_path: Path) -> None:
        Image.new("F", (2, 2), 0.5).save(tmp_path / "float.tiff")
        assert "mode F" in self.refused(tmp_path / "float.tiff")
