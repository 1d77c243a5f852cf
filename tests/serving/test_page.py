"""The page in headless Chromium: ask, see the answer, move the threshold; a wrong file; a phone's width."""

import shutil

import numpy as np
import pytest

from instancevg_jax.answers.predictor import Predictor
from instancevg_jax.serving.app import Limits, create_app
from instancevg_jax.serving.model import Model
from instancevg_jax.serving.server import running
from tests.serving.test_app import png

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")]


@pytest.fixture(scope="module")
def address():
    with running(create_app(Model(Predictor.from_pretrained(batch_size=4)), Limits())) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def drawn(page) -> str:
    return page.evaluate("document.querySelector('canvas').toDataURL()")


def answered(page, text: str) -> None:
    page.wait_for_function(
        "text => document.querySelector('#answers').innerText.includes(text)", arg=text, timeout=60_000
    )


@pytest.mark.parametrize("size", [(1280, 900), (390, 844)], ids=["desktop", "phone"])
def test_ask_and_filter(browser, address, tmp_path, size):
    page = browser.new_page(viewport={"width": size[0], "height": size[1]})
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(address)
    page.wait_for_selector("#examples img")
    page.click("#examples button")
    answered(page, "3 objects")
    with_masks = drawn(page)
    page.uncheck("#masks")
    assert drawn(page) != with_masks
    page.check("#masks")
    page.check("#heat")
    page.check("#points")
    assert drawn(page) != with_masks
    page.evaluate(
        "() => { const s = document.querySelector('#threshold'); s.value = 1; s.dispatchEvent(new Event('input')); }"
    )
    answered(page, "nothing above the score threshold 1.00")
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
    with page.expect_download() as download:
        page.click("#json")
    assert '"verdict"' in download.value.path().read_text()
    page.screenshot(path=tmp_path / "page.png", full_page=True)
    page.fill("#sentences", "the blue star\nall circles")
    page.click("#go")
    answered(page, "all circles")
    assert page.locator("#answers li").count() == 2
    assert not errors
    page.close()


def test_the_page_shows_what_is_wrong(browser, address, tmp_path):
    page = browser.new_page()
    page.goto(address)
    (tmp_path / "notes.txt").write_text("not a picture")
    page.set_input_files("#file", tmp_path / "notes.txt")
    page.wait_for_selector("#message.bad")
    assert "not a picture" in page.inner_text("#message")
    page.click("#examples button")
    answered(page, "3 objects")
    page.fill("#sentences", "...")
    page.click("#go")
    page.wait_for_selector("#message.bad")
    assert "no words" in page.inner_text("#message")
    (tmp_path / "large.png").write_bytes(png(np.random.default_rng(0).integers(0, 256, (3000, 3000, 3), np.uint8)))
    page.set_input_files("#file", tmp_path / "large.png")
    page.wait_for_function("!document.querySelector('#message').textContent")
    page.click("#go")
    page.wait_for_selector("#message.bad")
    assert "larger than" in page.inner_text("#message")
    page.close()
