"""Takes docs/dashboard-light.png and docs/dashboard-dark.png of the dashboard at work, on the simulated backend.

python -m scripts.recording.screenshots           # needs Playwright's package and a Chromium
"""

from __future__ import annotations

import shutil
import sys
from contextlib import ExitStack
from pathlib import Path

from playwright.sync_api import sync_playwright
from tests.gateway.serving import is_ready, serving
from tests.patience import eventually

from impetus_producer.servers.local import LocalServer

ROOT = Path(__file__).resolve().parents[2]
SIMULATED = ("--embedding-backend", "simulated", "--generation-backend", "simulated", "--simulated-a-ms", "30")


def main(folder: Path) -> None:
    with ExitStack() as stack:
        server = stack.enter_context(LocalServer(SIMULATED))
        running = stack.enter_context(serving(server.url))
        eventually(lambda: is_ready(running, "embedding", "generation"))
        browser = stack.enter_context(sync_playwright()).chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-background-networking"]
        )
        stack.callback(browser.close)
        for _ in range(3):
            running.producer.generate("Go on.", ignore_eos=True, max_tokens=5000)
        failing = running.producer.embed("x", dimensions=5000)
        eventually(lambda: failing.status() == "failed")
        for scheme in ("light", "dark"):
            page = browser.new_page(color_scheme=scheme, viewport={"width": 1200, "height": 1000})
            page.goto(running.url)
            page.locator("#state", has_text="workers serve").wait_for()
            for _ in range(20):
                running.post("/v1/embeddings", {"input": ["a text"] * 16})
            page.get_by_role("button", name="Compare").click()
            page.get_by_label("Message").fill("Go on.")
            page.get_by_role("button", name="Send").click()
            page.locator("#talk p").nth(1).wait_for()
            page.locator("#jobs button").first.wait_for()
            page.locator("#failures button").first.wait_for()
            page.screenshot(path=folder / f"dashboard-{scheme}.png", full_page=True)
            page.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs")
