"""The page: all content is in it, escaped, in one file that fetches nothing."""

import base64
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest

from instancevg_jax.evaluation.page import Bar, Bars, Figure, Gallery, Lines, Section, Table, Tile, Tiles, write_page

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
COLOURS = ("red", "green", "blue", "yellow")


class Balance(HTMLParser):
    """Checks that every element is closed in order, and keeps the text."""

    VOID = ("meta", "img", "input")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        """`<line/>` opens and closes itself."""

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def written(path: Path, *sections: Section, **more) -> tuple[str, str]:
    """The file and its text. Fails where elements are not balanced or anything is fetched from elsewhere."""
    write_page(path, "A <title>", sections, **more)
    html = path.read_text(encoding="utf-8")
    parser = Balance()
    parser.feed(html)
    assert parser.open == []
    assert not re.search(r"(src|href)\s*=\s*\"(?!data:|#)", html)
    assert "http" not in html
    return html, " ".join(parser.text)


def test_tables_and_notes(tmp_path: Path):
    table = Table(
        "Results", ["rule", "gIoU", "n"], [["<sigmoid>", 0.51234, 1536], ["softmax", None, 3]], "a note & more"
    )
    html, text = written(tmp_path / "deep" / "r.html", table, notes=["Measured & checked"])
    for part in ("A <title>", "Results", "<sigmoid>", "0.512", "1536", "a note & more", "Measured & checked"):
        assert part in text
    assert "<td>-</td>" in html
    assert "<sigmoid>" not in html


def test_pictures_are_embedded(tmp_path: Path):
    image = np.zeros((40, 60, 3), np.uint8)
    image[..., 0] = 200  # red
    html, text = written(
        tmp_path / "r.html",
        Gallery("Successes", [Figure([("truth", image)], "one <b>", "IoU > 0.9")]),
        Gallery("Failures", []),
    )
    assert "IoU > 0.9" in text
    assert re.search(r"Failures\s+none", text)
    assert "<details>" not in html
    (data,) = re.findall(r"data:image/webp;base64,([^\"]+)", html)
    decoded = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR_RGB)
    assert np.abs(decoded.astype(int) - image).max() < 10


def test_a_look_inside(tmp_path: Path):
    image = np.zeros((8, 8, 3), np.uint8)
    html, text = written(
        tmp_path / "r.html", Gallery("Failures", [Figure([("prediction", image)], "wrong", inside=image)])
    )
    assert "look inside" in text
    assert html.count("data:image/webp") == 2


def test_lines_scale_to_the_plot(tmp_path: Path):
    series = {"total": [(0, 4.0), (50, 2.0), (100, 1.0)], "broken": [(0, float("nan")), (100, float("inf"))]}
    html, text = written(tmp_path / "r.html", Lines("Loss", "step", series))
    first, second = re.findall(r'points="([^"]*)"', html)
    assert first == "64.0,12.0 384.0,172.0 704.0,252.0"
    assert second == ""
    for part in ("Loss", "step", "total", "broken", "100"):
        assert part in text


def test_a_mark_on_lines(tmp_path: Path):
    lines = Lines(
        "Sweep", "score threshold", {"F1": [(0.0, 20.0), (1.0, 60.0)]}, mark=0.75, mark_label="the <config>'s"
    )
    html, text = written(tmp_path / "r.html", lines)
    assert '<line class="mark" x1="544.0" x2="544.0" y1="12" y2="252"/>' in html
    assert "the <config>'s" in text


@pytest.mark.parametrize(
    "points", [[], [(3, 2.0)], [(0, 1.0), (1, 1.0)], [(0, 1e-9), (1, 2e-9)], [(0, -1e9), (1e6, 1e9)]]
)
def test_degenerate_lines(tmp_path: Path, points: list):
    html, text = written(tmp_path / "r.html", Lines("Loss", "step", {"a": points}))
    assert "nan" not in html
    assert ("no data" in text) == (not points)


def test_bars_and_their_references(tmp_path: Path):
    bars = [Bar("the {shape}", 0.4, 0.25), Bar("over", 1.7), Bar("none", float("nan"))]
    html, text = written(tmp_path / "r.html", Bars("REC", bars, "chance"), Bars("Empty", []))
    assert re.findall(r'<b style="width:([^"]*)"', html) == ["40.0%", "100.0%", "0.0%"]
    assert re.findall(r'style="left:([^"]*)"', html) == ["25.0%"]
    for part in ("the {shape}", "0.400", "1.700", "nan", "chance", "no data"):
        assert part in text


def test_a_failed_report_leaves_the_old_one(tmp_path: Path):
    path = tmp_path / "r.html"
    path.write_text("old")
    with pytest.raises(UnicodeEncodeError):
        write_page(path, "\ud800", [])
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_tiles_facts_and_meanings(tmp_path: Path):
    tiles = Tiles("val", [Tile("gIoU", "61.2", "floor: 33.3"), Tile("F1", "-")])
    meanings = {"gIoU": 'Mean IoU of "all" sentences'}
    html, text = written(tmp_path / "r.html", tiles, facts={"Command": "evaluate --x=<y>"}, meanings=meanings)
    assert text.index("evaluate --x=<y>") < text.index("61.2")
    assert 'tabindex="0" data-meaning="Mean IoU of &quot;all&quot; sentences">gIoU</span>' in html
    assert html.count("data-meaning=") == 1
    assert 'id="filter"' not in html  # there are no pictures


def test_folded_tables_and_links(tmp_path: Path):
    tables = [Table("First", ["a"], [[1]], folded="All rows"), Table("Second", ["a"], [[2]])]
    html, text = written(tmp_path / "r.html", *tables)
    assert html.count("<details>") == text.count("All rows") == 1
    assert '<a href="#s1">Second</a>' in html
    assert '<section id="s1"><h2>Second</h2>' in html


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
@pytest.mark.parametrize("width", [1280, 390])
def test_in_a_browser(tmp_path: Path, width: int):
    """The filter, explanations by tap and by hover, enlarging, and no sideways scrolling of the page."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    image = np.zeros((480, 480, 3), np.uint8)
    pictures = [Figure([("prediction", image), ("ground truth", image)], f"the {name} circle") for name in COLOURS]
    wide = Table("Table", ["group", *[f"a long metric {i}" for i in range(12)]], [["a row", *range(12)]])
    sections = [
        Tiles("val", [Tile("gIoU", "61.2"), Tile("F1", "2")]),
        Gallery("Best", pictures),
        Gallery("None", []),
        wide,
    ]
    facts = {"Command": "instancevg evaluate --checkpoint=" + "a/long/path/" * 30}
    written(
        tmp_path / "r.html", *sections, facts=facts, meanings={"gIoU": "Mean IoU.", "F1": "Share of " + "words " * 30}
    )
    errors = []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        context = browser.new_context(viewport={"width": width, "height": 844}, has_touch=width < 720)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto((tmp_path / "r.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        for name, meaning in (("gIoU", "Mean IoU."), ("F1", "Share of words")):
            term = page.locator(".tiles .term", has_text=name)
            term.tap() if width < 720 else term.hover()
            box = page.locator("#meaning").bounding_box()
            assert meaning in page.inner_text("#meaning")
            assert box
            assert 0 <= box["x"] <= width - box["width"]
        page.mouse.click(width - 1, 1)
        assert page.locator("#meaning").is_hidden()
        page.fill("#filter", "RED")
        assert page.locator("figure:visible").count() == 1
        assert page.inner_text("#matches") == f"1 of {len(COLOURS)}"
        page.fill("#filter", "pentagon")
        assert page.locator("figure:visible").count() == 0
        page.fill("#filter", "")
        before = page.locator(".panels img").first.bounding_box()
        page.locator(".panels").first.click()
        after = page.locator(".panels img").first.bounding_box()
        assert before
        assert after
        assert after["width"] > 1.5 * before["width"]
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        browser.close()
    assert not errors
