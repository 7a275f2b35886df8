"""The dashboard in a real browser: it shows what is so, does what an operator wants, and can be used by everybody."""

from __future__ import annotations

import json
import re
import shutil
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import pytest

from impetus_gateway.entry.callers import Keys, Role, new_key
from impetus_producer import contract
from tests.patience import eventually

from .serving import Serving, is_ready, serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from playwright.sync_api import Browser, Page

    from tests.worker.conftest import Fleet

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(find_spec("playwright") is None, reason="Playwright is not installed (pip install playwright)"),
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium (Debian: apt-get install chromium)"),
]

# What axe looks for: names of controls, and contrast of all text against what is behind it (WCAG 2.2, 1.4.3).
UNNAMED = """() => [...document.querySelectorAll('input, textarea, button')]
  .filter((each) => each.offsetParent && !each.labels?.length && !each.textContent.trim())
  .map((each) => each.outerHTML)"""
PALE = """() => {
  const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  const rgb = (color) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
    return canvas.getImageData(0, 0, 1, 1).data;
  };
  const light = ([r, g, b]) => [r, g, b].map((part) => part / 255)
    .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
    .reduce((sum, part, at) => sum + part * [0.2126, 0.7152, 0.0722][at], 0);
  const behind = (each) => {
    for (; each; each = each.parentElement) {
      const color = rgb(getComputedStyle(each).backgroundColor);
      if (color[3]) return color;
    }
    return [255, 255, 255];
  };
  return [...document.querySelectorAll('body *')].filter((each) => each.offsetParent && !each.disabled
      && [...each.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim()))
    .map((each) => {
      const [a, b] = [light(rgb(getComputedStyle(each).color)), light(behind(each))].sort((x, y) => y - x);
      return [(a + 0.05) / (b + 0.05), each.outerHTML.slice(0, 80)];
    }).filter(([contrast]) => contrast < 4.5);
}"""


@pytest.fixture(scope="module")
def worker_options() -> tuple[str, ...]:
    """Slow enough that a chat is seen to grow, and is there to be stopped."""
    return ("--simulated-a-ms", "100")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-background-networking", "--disable-gpu"]
        )
        yield started
        started.close()


@pytest.fixture
def page(browser: Browser, served: Serving) -> Iterator[Page]:
    """The dashboard, open. Whatever goes wrong in it, or leads elsewhere, fails the test."""
    context = browser.new_context(viewport={"width": 1200, "height": 900}, color_scheme="light")
    opened = context.new_page()
    wrong: list[str] = []
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    opened.on("request", lambda asked: None if asked.url.startswith(served.url) else wrong.append(asked.url))
    opened.goto(served.url)
    yield opened
    context.close()
    assert [each for each in wrong if not each.startswith("data:")] == []


def test_it_shows_queues_and_workers(page: Page) -> None:
    page.locator("#workers td >> text=serving").nth(1).wait_for()
    assert "2 of 2 workers serve." in page.inner_text("#state")
    names = {row.split("\n")[0] for row in page.locator("#queues tbody tr td:first-child").all_inner_texts()}
    assert names == {name for lanes in contract.ROLE_QUEUES.values() for name in lanes}
    assert "simulated" in page.inner_text("#workers")


def test_a_job_passes_through_and_another_is_cancelled(page: Page, served: Serving) -> None:
    long: dict[str, Any] = {"ignore_eos": True, "max_tokens": 5000}
    handle = served.producer.generate("Go on.", **long)
    cancel = page.get_by_role("button", name=f"Cancel {handle.job_id}")
    cancel.wait_for()
    page.locator("#jobs", has_text="running").wait_for()
    cancel.click()
    page.locator("#said", has_text=f"{handle.job_id} was cancelled.").wait_for()
    assert served.status_of(handle.job_id) == "stopped"
    cancel.wait_for(state="detached")
    for _ in range(3):
        served.producer.embed(["a", "b"]).result(30)
    page.locator("#jobs-now", has_text=re.compile("[1-9]")).wait_for()


def test_a_failure_says_why_and_is_tried_again(page: Page, served: Serving) -> None:
    handle = served.producer.embed("x", dimensions=5000)
    eventually(lambda: handle.status() == "failed")
    retry = page.get_by_role("button", name=f"Retry {handle.job_id}")
    retry.wait_for()
    assert "dimensions" in page.inner_text("#failures")
    retry.click()
    page.locator("#said", has_text=f"{handle.job_id} is tried again.").wait_for()


def test_a_batch_is_seen_to_progress_and_is_cancelled(page: Page, served: Serving) -> None:
    body = {"messages": [{"role": "user", "content": "Go on."}], "ignore_eos": True, "max_tokens": 5000}
    url = "/v1/chat/completions"
    lines = [json.dumps({"custom_id": str(at), "method": "POST", "url": url, "body": body}) for at in range(3)]
    file = {"file": ("in.jsonl", "\n".join(lines).encode())}
    kept = served.client.post("/v1/files", data={"purpose": "batch"}, files=file).json()
    batch = served.post("/v1/batches", {"input_file_id": kept["id"], "endpoint": url}).json()
    page.locator("#batches", has_text="0 of 3").wait_for()
    page.get_by_role("button", name=f"Cancel {batch['id']}").click()
    page.locator("#batches", has_text="cancelled").wait_for()


def test_what_others_wrote_is_shown_and_not_obeyed(page: Page, served: Serving) -> None:
    evil = '<img src=x onerror="document.title=1">'
    handle = served.producer.embed("x", model=evil)
    eventually(lambda: handle.status() in ("failed", "finished"))
    served.producer.connection.hset("rq:worker:evil", mapping={"state": evil, "queues": evil})
    served.producer.connection.sadd("rq:workers", "rq:worker:evil")
    try:
        page.locator("#workers", has_text="<img").wait_for()
        assert page.title() == "Impetus"
        assert page.locator("main img").count() == 0
    finally:
        served.producer.connection.srem("rq:workers", "rq:worker:evil")
        served.producer.connection.delete("rq:worker:evil")


def test_workers_are_suspended_and_go_on(page: Page, served: Serving) -> None:
    page.get_by_role("button", name="Suspend workers").click()
    page.locator("#state", has_text="suspended").wait_for()
    assert served.producer.connection.exists("rq:suspended")
    page.get_by_role("button", name="Let workers go on").click()
    page.locator("#state", has_text="2 of 2 workers serve.").wait_for()
    assert not served.producer.connection.exists("rq:suspended")
    eventually(lambda: is_ready(served, "embedding", "generation"))


def test_two_texts_are_compared_and_a_chat_is_streamed_by_keyboard_alone(page: Page) -> None:
    page.get_by_label("One text").fill("same")
    page.get_by_label("Another text").fill("same")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.locator("#alike", has_text="cosine 1.000").wait_for()
    page.get_by_label("Message").focus()
    page.keyboard.type("Go on.")
    page.keyboard.press("Enter")
    answer = page.locator("#talk p").nth(1)
    answer.wait_for()
    first = answer.inner_text()
    assert first.startswith("[simulated]")
    page.locator("#send:enabled").wait_for()
    assert len(answer.inner_text()) > len(first)
    page.keyboard.type("And now stop.")
    page.keyboard.press("Enter")
    page.locator("#talk p").nth(3).wait_for()
    page.get_by_role("button", name="Stop").click()
    page.locator("#talk p", has_text="Stopped.").wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1200])
def test_it_can_be_read_in_both_schemes_and_on_a_telephone(page: Page, scheme: Any, width: int) -> None:
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 800})
    page.locator("#workers td >> text=serving").nth(1).wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(UNNAMED) == []
    assert page.evaluate(PALE) == []
    page.locator("body").press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Tab")
    focused = "getComputedStyle(document.activeElement)"
    assert page.evaluate(f"[document.activeElement.id, {focused}.outlineStyle]") == ["suspend", "solid"]


def test_it_survives_its_gateways_restart(browser: Browser, fleet: Fleet) -> None:
    with browser.new_context() as context:
        with serving(fleet.url) as first:
            page = context.new_page()
            page.goto(first.url)
            page.locator("#state", has_text="workers serve").wait_for()
            port = int(first.url.rpartition(":")[2])
        page.locator("#state", has_text="not to be reached; trying again").wait_for()
        with serving(fleet.url, port=port):
            page.locator("#state", has_text="workers serve").wait_for()


def test_a_locked_gateway_asks_for_a_key_with_the_role(browser: Browser, fleet: Fleet, tmp_path: Path) -> None:
    key, entry = new_key("boss", list(Role))
    other, weak = new_key("shop", [Role.SUBMIT])
    path = tmp_path / "keys.toml"
    path.write_text(f"{entry}\n{weak}")
    with serving(fleet.url, Keys.read(path)) as locked, browser.new_context() as context:
        page = context.new_page()
        page.goto(locked.url)
        for said, key_given in (("has not the role operate", other), ("there is no such key", "nonsense")):
            page.get_by_label(re.compile("Key with the role")).fill(key_given)
            page.get_by_role("button", name="Look").click()
            page.locator("#key-said", has_text=said).wait_for()
        page.get_by_label(re.compile("Key with the role")).fill(key)
        page.get_by_role("button", name="Look").click()
        page.locator("#state", has_text="workers serve").wait_for()
        assert page.locator("#key-form").is_hidden()
