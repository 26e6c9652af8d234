"""A browser to open pages with, and what it says about them."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import pytest

FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
# What a busy machine may need.
TIMEOUT = 120_000

# (contrast, colour, background, text) of every element that shows text of its own, backgrounds blended.
CONTRASTS = """() => {
  const pixel = new OffscreenCanvas(1, 1).getContext("2d", {willReadFrequently: true});
  const blend = (color, under) => {
    pixel.fillStyle = `rgb(${under.join()})`; pixel.fillRect(0, 0, 1, 1);
    pixel.fillStyle = color; pixel.fillRect(0, 0, 1, 1);
    return [...pixel.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const behind = e => {
    const under = e.parentElement ? behind(e.parentElement) : [255, 255, 255];
    return e instanceof SVGElement ? under : blend(getComputedStyle(e).backgroundColor, under);
  };
  const light = rgb => rgb.map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const shows = e => e.checkVisibility() && [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
  return [...document.body.querySelectorAll("*")].filter(e => !e.closest("script, title") && shows(e)).map(e => {
    const under = behind(e), style = getComputedStyle(e);
    const color = blend(e instanceof SVGElement ? style.fill : style.color, under);
    const [dark, bright] = [light(color), light(under)].sort((a, b) => a - b);
    return [(bright + .05) / (dark + .05), color, under, e.textContent.trim().slice(0, 40), e instanceof SVGElement];
  });
}"""


def _absent(what: str) -> NoReturn:
    reason = f"{what}: `make browser` or `apt-get install -y --no-install-recommends chromium`, and `make setup`"
    pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)


@contextmanager
def started() -> Iterator:
    """A headless Chromium; without one the test is skipped, and fails where CI is set."""
    found = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)
    if found is None:
        _absent("there is no Chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError:
        _absent("there is no playwright")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=FLAGS.split(), timeout=TIMEOUT)
        yield browser
        browser.close()


@contextmanager
def opened(browser, path: Path, width: int = 1280, scheme: str = "light") -> Iterator:
    """The page of a file; at the end it must have asked for nothing else, and said nothing on the console."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    context.set_default_timeout(TIMEOUT)
    page, said, asked = context.new_page(), [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    yield page
    context.close()
    assert said == []
    assert set(asked) == {path.as_uri()}
