"""Pictures: where things are drawn, what a caption may take, and files that explain themselves."""

import json

import numpy as np
import pytest
from PIL import Image

from mmx.core.errors import UserError
from mmx.eval import grid, png


def flat(n: int, size: int = 32) -> np.ndarray:
    """n images, each of one colour of its own."""
    colours = np.stack([np.arange(n) * 20 + 10, np.full(n, 7), np.arange(n)], 1).astype(np.uint8)
    return np.broadcast_to(colours[:, None, None], (n, size, size, 3))


def test_images_are_enlarged_exactly_and_in_reading_order():
    images = flat(5)
    images = images.copy()
    images[:, 0, 0] = 255
    picture = np.asarray(grid.draw_grid([grid.Section(images, "abcde")], columns=3))
    left, top = grid.MARGIN, grid.MARGIN
    tile = picture[top : top + 128, left : left + 128]
    np.testing.assert_array_equal(tile, images[0].repeat(4, 0).repeat(4, 1))
    for i in range(3):
        x = left + i * (128 + grid.GAP)
        assert (picture[top + 60, x + 60] == images[i, 9, 9]).all()
    second_row = np.argwhere((picture[:, left + 60] == images[3, 9, 9]).all(1)).ravel()
    assert len(second_row) == 128 and second_row[0] > top + 128 + grid.GAP + 14  # caption
    assert picture.shape[1] == 2 * grid.MARGIN + 3 * 128 + 2 * grid.GAP


def test_floats_mean_the_same_and_all_is_drawn():
    section = grid.Section(flat(2), ["a", "b"])
    plain = grid.draw_grid([section])
    floats = grid.Section(section.images / 127.5 - 1, ["a", "b"])
    assert plain.tobytes() == grid.draw_grid([floats]).tobytes()
    bare = plain.height
    for extra in ({"title": "T"}, {"subtitle": "S"}, {"attribution": "OpenMoji, CC BY-SA 4.0"}):
        assert grid.draw_grid([section], **extra).height > bare
    titled = grid.Section(section.images, ["a", "b"], "heading")
    assert grid.draw_grid([titled]).height > bare
    assert grid.draw_grid([section, titled]).height > 2 * bare - 2 * grid.MARGIN


def test_every_line_of_ink_stays_on_the_page():
    captions = ["W" * 90, "a " * 90, "x", ""]
    picture = np.asarray(
        grid.draw_grid(
            [grid.Section(flat(4), captions)],
            columns=2,
            title="a long title " * 9,
            attribution="OpenMoji, CC BY-SA 4.0 " * 4,
        )
    )
    page = np.array([0xF5, 0xF5, 0xF3])
    border = np.concatenate([picture[:, :20].reshape(-1, 3), picture[:, -20:].reshape(-1, 3)])
    assert (border == page).all() and (picture[-10:] == page).all()


def test_large_images_are_not_enlarged():
    picture = grid.draw_grid([grid.Section(flat(1, 200), ["a"])])
    assert picture.width == 200 + 2 * grid.MARGIN


def test_grid_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="2 images but 1 captions"):
        grid.draw_grid([grid.Section(flat(2), ["a"])])
    with pytest.raises(ValueError, match="one size"):
        grid.draw_grid([grid.Section(flat(1), ["a"]), grid.Section(flat(1, 64), ["b"])])
    with pytest.raises(ValueError, match="one size"):
        grid.draw_grid([])
    with pytest.raises(ValueError, match="expected images"):
        grid.draw_grid([grid.Section(np.zeros((2, 8, 8, 1)), ["a", "b"])])


def test_captions_wrap_then_shrink_then_end_in_an_ellipsis():
    (big, _), (small, max_lines) = grid.CAPTION_FITS
    assert grid.fit_caption("red heart", 128) == (["red heart"], big)
    assert grid.fit_caption("woman firefighter running", 128)[0] == ["woman firefighter", "running"]
    text = "person in manual wheelchair facing right, medium-light skin tone"
    lines, size = grid.fit_caption(text, 128)
    assert size == small and " ".join(lines) == text  # the tone is last: it must not be cut
    lines, size = grid.fit_caption("several words and " * 20, 128)
    assert size == small and len(lines) == max_lines and lines[-1].endswith("…")
    for width in range(90, 130):
        lines, size = grid.fit_caption("several words and " * 20, width)
        assert max(grid.font(size).getlength(line) for line in lines) <= width


def test_long_words_break():
    lines = grid.wrap("W" * 40, 14, 128)
    assert "".join(lines) == "W" * 40 and len(lines) > 2
    assert max(grid.font(14).getlength(line) for line in lines) <= 128
    assert grid.wrap("", 14, 128) == []


def test_letters_without_a_glyph_lose_the_accent_not_the_word():
    assert grid.printable("flag of Côte d'Ivoire") == "flag of Cote d'Ivoire"
    assert grid.printable("São Tomé — Åland\n\u00d72") == "Sao Tome - Aland x2"
    assert (
        grid.printable("a\u0308 \u201cq\u201d") == "a \u201cq\u201d"
    )  # composed first; quotes are there
    assert grid.printable("心 red") == "? red"
    plain = "".join(map(chr, range(32, 127)))
    assert grid.printable(plain) == plain


def test_decoding_section_shows_first_last_and_even_steps():
    frames = flat(13)
    section = grid.decoding_section(frames, "octopus", columns=4)
    assert list(section.captions) == ["start", "step 4 of 12", "step 8 of 12", "step 12 of 12"]
    np.testing.assert_array_equal(section.images, frames[[0, 4, 8, 12]])
    assert "octopus" in section.title
    few = grid.decoding_section(frames[:3], "p", columns=8)
    assert list(few.captions) == ["start", "step 1 of 2", "step 2 of 2"]


def test_hidden_tokens_are_covered_and_only_they():
    images = flat(2, 8)
    is_masked = np.zeros((2, 4, 4), bool)
    is_masked[1, 0, 3] = True
    covered = grid.cover_hidden(images, is_masked)
    np.testing.assert_array_equal(covered[0], images[0])
    expected = images[1].copy()
    expected[0:2, 6:8] = grid.HIDDEN[1]  # 0 + 3 is odd
    np.testing.assert_array_equal(covered[1], expected)
    section = grid.decoding_section(images, "p", is_masked_Rhw=is_masked[::-1])
    assert (section.images[0][0, 7] == grid.HIDDEN[1]).all()
    with pytest.raises(ValueError, match="tokens"):
        grid.cover_hidden(images, is_masked[:, :3])


def test_metadata_survive_and_bytes_are_reproducible(tmp_path):
    metadata = {
        "run": tmp_path / "run",
        "step": np.int64(2000),
        "prompts": ["Côte", "心"],
        "guidance": np.float32(4),
        "attribution": "OpenMoji, CC BY-SA 4.0",
    }
    path = png.save_image(tmp_path / "new" / "a.png", flat(1)[0], metadata)
    assert png.read_metadata(path) == {
        "run": str(tmp_path / "run"),
        "step": 2000,
        "prompts": ["Côte", "心"],
        "guidance": 4.0,
        "attribution": "OpenMoji, CC BY-SA 4.0",
    }
    with Image.open(path) as picture:
        picture.load()
        np.testing.assert_array_equal(np.asarray(picture), flat(1)[0])
        assert picture.info["Copyright"] == "OpenMoji, CC BY-SA 4.0"
        assert json.loads(picture.info["mmx"])["step"] == 2000
    reordered = dict(reversed(metadata.items()))
    again = png.save_image(tmp_path / "b.png", flat(1)[0] / 127.5 - 1, reordered)
    assert again.read_bytes() == path.read_bytes()


def test_a_failed_write_leaves_the_old_picture_and_no_rest(tmp_path, monkeypatch):
    path = png.save_image(tmp_path / "a.png", flat(1)[0], {"step": 1})
    whole = path.read_bytes()

    def full_disk(self, file, **kwargs):
        file.write(whole[:20])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full_disk)
    with pytest.raises(OSError, match="No space"):
        png.save_image(path, flat(1)[0], {"step": 2})
    assert path.read_bytes() == whole and list(tmp_path.iterdir()) == [path]


def test_bad_names_and_files_are_one_clear_line(tmp_path):
    with pytest.raises(UserError, match=r"\.png"):
        png.save_image(tmp_path / "a.jpg", flat(1)[0], {})
    with pytest.raises(UserError, match="no such picture"):
        png.read_metadata(tmp_path / "none.png")
    Image.fromarray(flat(1)[0]).save(tmp_path / "bare.png")
    with pytest.raises(UserError, match="no metadata"):
        png.read_metadata(tmp_path / "bare.png")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(UserError, match="not a whole picture"):
        png.read_metadata(tmp_path / "text.png")
    with pytest.raises(ValueError, match=r"\[H, W, 3\]"):
        png.save_image(tmp_path / "b.png", flat(1), {})
    with pytest.raises(TypeError, match="metadata cannot hold set"):
        png.save_image(tmp_path / "c.png", flat(1)[0], {"x": {1}})
