"""The page in headless Chromium, over real servers."""

from __future__ import annotations

import re
import shutil
from urllib.parse import urlparse

import httpx
import pytest
from playwright.sync_api import expect, sync_playwright

from tests.serving.servers import running

pytestmark = pytest.mark.browser

CHROMIUM = shutil.which("chromium")
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync",
]  # fmt: skip
PATIENCE = 60_000


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no chromium here (Debian's package)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


def test_sliders_reach_the_prompt_and_nothing_leaves_this_server(browser, steer_folder, value_folder):
    options = ("--name", "writer", "--reader", str(value_folder))
    with running(steer_folder, *options) as server:
        page = browser.new_page(viewport={"width": 390, "height": 844})
        page.set_default_timeout(PATIENCE)
        asked: set[str] = set()
        page.on("request", lambda request: asked.add(urlparse(request.url).netloc))
        page.goto(server.url)
        slider = page.get_by_role("slider", name=re.compile("quality")).first
        slider.focus()
        page.keyboard.press("Home")
        page.get_by_label("Your message").fill("Once upon a time")
        page.keyboard.press("Enter")
        expect(page.locator("#chat-note")).to_contain_text(re.compile("asked for quality:0.*reads as quality:"), timeout=PATIENCE)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "a phone scrolls downwards only"
        assert asked == {urlparse(server.url).netloc}
        page.close()


def test_a_text_is_read_with_probabilities(browser, value_folder):
    with running(value_folder) as server:
        page = browser.new_page()
        page.set_default_timeout(PATIENCE)
        page.goto(server.url)
        page.get_by_label("Text to read").fill("the cat sat on a red hat")
        page.get_by_role("button", name="Read", exact=True).click()
        expect(page.locator("[data-attribute=humor] li")).to_have_count(11, timeout=PATIENCE)
        page.close()


def test_a_token_shuts_the_page_too(steer_folder):
    with running(steer_folder, "--api-key", "secret") as server, httpx.Client(base_url=server.url, follow_redirects=True) as client:
        assert client.get("/").status_code == client.get("/page/config").status_code == 401
        assert client.post("/page/key", data={"key": "wrong"}).status_code == 401
        assert client.post("/page/key", data={"key": "secret"}, timeout=60).status_code == 200
        assert client.get("/page/config", timeout=60).status_code == 200
