"""Sample sheets: contours lie on the masks, rows share one grey window, same bytes twice."""

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image
from scipy.ndimage import binary_dilation, binary_erosion, zoom

from scripts.report.figures import png_bytes
from scripts.report.sheets import SheetRow, _checked, draw_sheet, grey_window, layout_sheet, mask_contours, sample_sheet
from scripts.runtime.errors import InputError

LABELS = {"background": 0, "tumour": 1, "oedema": 2}


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    labels = np.zeros((3, 32, 24), dtype=np.int64)
    labels[0, 8:20, 6:16] = 1
    labels[1, 20:32, 14:24] = 1  # up to the edge
    labels[1, 2:6, 2:8] = 2
    images = rng.uniform(0, 100, (3, 1, 32, 24))
    return [("real", images, labels), ("synthetic, seed 0", 0.5 * images[:2], labels[:2])]


def tiles_of(png, rows, tile):
    """Cut the sheet into {(row, slice, channel): (bare, with contours)} at the places of the layout."""
    checked = [SheetRow(*row) for row in rows]
    free = layout_sheet(checked, tile, columns=4, header=30, minimum_width=560)
    cut = {}
    for r, (row, places) in enumerate(zip(checked, free.tiles, strict=True)):
        height, width = (round(side * free.scale) for side in row.images.shape[2:])
        for s, channels in enumerate(places):
            for c, (left, top) in enumerate(channels):
                bare = png[top : top + height, left : left + width].astype(int)
                start = left + free.pair_step
                cut[r, s, c] = bare, png[top : top + height, start : start + width].astype(int)
    return cut


def drawn(rows, tmp_path, **settings):
    path = sample_sheet(rows, tmp_path / "sheet.png", labels=LABELS, **settings)
    with Image.open(path) as image:
        return np.asarray(image)


def coloured(pixels):
    return np.ptp(pixels, axis=2) > 12


@pytest.mark.slow
def test_contours_follow_the_mask(rows, tmp_path):
    factor = 8  # 32 rows on 256 pixels
    cut = tiles_of(drawn(rows, tmp_path, tile=256), rows, 256)
    seen = 0
    for (r, s, _), (bare, outlined) in cut.items():
        assert not coloured(bare).any()
        mask = zoom(rows[r][2][s] > 0, factor, order=0, grid_mode=True, mode="grid-constant")
        # The line runs between the centres of the border's pixels, so within half a pixel of the border.
        near = binary_dilation(mask, iterations=factor) & ~binary_erosion(mask, iterations=factor, border_value=0)
        assert not (coloured(outlined) & ~near).any()
        # The line's colour appears in each row and column of the mask, but for the cut corners.
        for axis in (0, 1):
            assert (coloured(outlined) & near).any(axis=axis).sum() >= 0.9 * mask.any(axis=axis).sum()
        assert coloured(outlined).any() == mask.any()
        np.testing.assert_array_equal(bare[~coloured(outlined)], outlined[~coloured(outlined)])
        seen += mask.any()
    assert seen == 4


def test_each_label_has_its_colour(rows, tmp_path):
    _, outlined = tiles_of(drawn(rows, tmp_path, tile=256), rows, 256)[0, 1, 0]
    upper, lower = outlined[:56], outlined[120:]
    assert (upper[coloured(upper)] @ [-1, 0, 1] > 0).all()  # oedema: sky blue
    assert (lower[coloured(lower)] @ [1, 0, -1] > 0).all()  # tumour: orange


def test_a_long_title_stays_on_the_sheet(rows):
    figure = draw_sheet(rows, LABELS, title="a generator, trained on fold 0 of Dataset502_SomeLongName, " * 2)
    renderer, whole = FigureCanvasAgg(figure).get_renderer(), figure.bbox
    for text in figure.axes[0].texts:
        box = text.get_window_extent(renderer)
        assert whole.x0 <= box.x0 and box.x1 <= whole.x1, text.get_text()


def test_contour_of_one_pixel_and_of_a_mask_at_the_edge():
    mask = np.zeros((4, 6), dtype=bool)
    mask[1, 2] = True
    (line,) = mask_contours(mask)
    assert np.abs(line - [2, 1]).sum(axis=1) == pytest.approx(0.5)
    (line,) = mask_contours(np.ones((4, 6), dtype=bool))
    assert (line[0] == line[-1]).all()
    assert (line.min(axis=0) == [-0.5, -0.5]).all() and (line.max(axis=0) == [5.5, 3.5]).all()
    assert mask_contours(np.zeros((4, 6), dtype=bool)) == []


def test_regions_are_outlined_as_unions(tmp_path):
    labels = np.zeros((1, 16, 16), dtype=np.int64)
    labels[0, 4:12, 4:12] = 1
    labels[0, 6:10, 6:10] = 2
    rows = [("real", np.zeros((1, 1, 16, 16)), labels)]
    plain = draw_sheet(rows, {"background": 0, "whole": [1, 2]})
    only = draw_sheet([("real", np.zeros((1, 1, 16, 16)), np.minimum(labels, 1))], {"background": 0, "whole": 1})
    assert png_bytes(plain) == png_bytes(only)


def test_rows_share_the_window_of_the_first(rows, tmp_path):
    cut = tiles_of(drawn(rows, tmp_path, tile=32), rows, 32)  # enlarged once: pixels as they are
    low, high = grey_window(rows[0][1], (0.5, 99.5))[0]
    for (r, s, _), (bare, _) in cut.items():
        expected = np.rint(255 * np.clip((rows[r][1][s, 0] - low) / (high - low), 0, 1))
        np.testing.assert_array_equal(bare[..., 0], expected)
        assert (bare == bare[..., :1]).all()


def test_explicit_window_and_every_channel(tmp_path):
    images = np.stack([np.full((16, 16), 1.0), np.full((16, 16), 30.0)])[None]
    rows = [("real", images, np.zeros((1, 16, 16), dtype=int))]
    sheet = drawn(rows, tmp_path, channel_names=["T1", "FLAIR"], window=[(0, 2), (10, 50)], tile=16)
    cut = tiles_of(sheet, rows, 16)
    assert set(cut) == {(0, 0, 0), (0, 0, 1)}
    assert (cut[0, 0, 0][0] == 128).all() and (cut[0, 0, 1][0] == 128).all()


def test_the_caption_says_what_window_it_is_and_where_from():
    rows = [("real", np.zeros((1, 1, 16, 16)), np.zeros((1, 16, 16), dtype=int))]
    sheet = draw_sheet(rows, LABELS, ["PET"], window=[(0, 2.5)], origin="of before and after", scale="SUV")
    words = " ".join(text.get_text() for text in sheet.axes[0].texts)
    assert "PET: 0 to 2.5 SUV (of before and after)." in words


def test_same_input_gives_same_bytes_whatever_the_users_style(rows, tmp_path):
    first = sample_sheet(rows, tmp_path / "a.png", "Title $1 \\beta$", labels=LABELS).read_bytes()
    with matplotlib.rc_context({"font.size": 31, "axes.facecolor": "red", "savefig.dpi": 40}):
        second = sample_sheet(rows, tmp_path / "b.png", "Title $1 \\beta$", labels=LABELS).read_bytes()
    assert first == second
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png"]
    with Image.open(tmp_path / "a.png") as image:
        assert image.info == {}


@pytest.mark.slow
def test_long_sheets_stay_small_enough(tmp_path):
    rng = np.random.default_rng(0)
    images = zoom(rng.uniform(size=(8, 1, 16, 16)), (1, 1, 4, 4), order=1)
    rows = [(name, images, np.zeros((8, 64, 64), dtype=int)) for name in ("real", "synthetic, seed 0")]
    path = sample_sheet(rows, tmp_path / "sheet.png", labels=LABELS)
    assert path.stat().st_size < 400_000


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda i, m: (i[:, 0], m), "channels, height, width"),
        (lambda i, m: (i, m[:2]), "channels, height, width"),
        (lambda i, m: (np.where(i > 50, np.nan, i), m), "NaN"),
        (lambda i, m: (i, m + 5), r"label values \[5, 6, 7\]"),
    ],
)
def test_bad_rows_are_refused_before_anything_is_written(rows, tmp_path, change, match):
    name, images, labels = rows[0]
    with pytest.raises(InputError, match=match):
        sample_sheet([(name, *change(images, labels))], tmp_path / "sheet.png", labels=LABELS)
    assert not list(tmp_path.iterdir())


def test_rows_of_other_channels_are_refused(rows):
    name, images, labels = rows[1]
    with pytest.raises(InputError, match="2 channels"):
        draw_sheet([rows[0], (name, np.concatenate([images, images], axis=1), labels)], LABELS)


def test_no_rows_and_wrong_captions_are_refused(rows):
    with pytest.raises(InputError, match="without rows"):
        _checked([], LABELS, ["image"])
    with pytest.raises(InputError, match="2 captions"):
        _checked([(*rows[0], ["a", "b"])], LABELS, ["image"])
