"""Looks at the site in a headless Chromium: `make pages`, after `make docs`.

Every page is opened 390 and 1280 pixels wide, light and dark. What is wrong is printed, and the exit status
is 1: a page wider than the window, an error on the console, a request that fails or leaves the site, a page
of one language without a link to the other, text that is as dark as what it is on. Arguments choose pages,
by how their addresses begin.
"""

import functools
import http.server
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

SITE = Path(__file__).parents[1] / "build" / "docs"
NAMES = "chromium", "chromium-browser", "google-chrome"
WIDTHS = 390, 1280
SCHEMES = "light", "dark"
OVERFLOWS = """() => [...document.querySelectorAll('body *')]
    .filter(one => one.getBoundingClientRect().right > innerWidth + 1)
    .filter(one => {
        for (let up = one; up; up = up.parentElement) {
            const style = getComputedStyle(up);
            if (style.position === 'fixed') return false;
            if (style.overflowX !== 'visible' && up !== document.body) return false;
        }
        return true;
    })
    .map(one => one.tagName + '.' + one.className).slice(0, 3)"""
CONTRAST = """() => {
    const luminance = text => {
        const [r, g, b] = text.match(/[\\d.]+/g).map(Number);
        return (0.2126 * r + 0.7152 * g + 0.0722 * b) / 255;
    };
    const ground = luminance(getComputedStyle(document.body).backgroundColor);
    const text = document.querySelector('.md-content p, .md-content td');
    return text ? Math.abs(ground - luminance(getComputedStyle(text).color)) : 1;
}"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files, and says nothing of it."""

    def log_message(self, *said: object) -> None:
        """Say nothing."""


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder on this machine, and give its address."""
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()


def troubles(browser: Browser, address: str, page: str, width: int, scheme: str) -> list[str]:
    """Return what is wrong with a page."""
    found: list[str] = []
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    try:
        tab = context.new_page()
        tab.on("console", lambda one: _note(found, one.type == "error", f"console: {one.text}"))
        tab.on("pageerror", lambda error: _note(found, True, f"error: {error}"))
        tab.on("requestfailed", lambda one: _note(found, True, f"not loaded: {one.url}"))
        tab.on("response", lambda one: _note(found, one.status >= 400, f"{one.status}: {one.url}"))
        tab.on("request", lambda one: _note(found, not one.url.startswith(address), f"elsewhere: {one.url}"))
        tab.goto(address + page, wait_until="networkidle")
        wide = tab.evaluate("document.documentElement.scrollWidth")
        if wide > width:
            found.append(f"{wide} pixels wide: {tab.evaluate(OVERFLOWS)}")
        if tab.evaluate(CONTRAST) < 0.3:
            found.append("text is hardly seen")
        other = "en" if page.startswith("zh/") else "zh"
        if not tab.locator(f"a[hreflang={other}]").count():
            found.append(f"no link to {other}")
    finally:
        context.close()
    return found


def _note(found: list[str], is_wrong: bool, what: str) -> None:
    if is_wrong:
        found.append(what)


def main() -> int:
    """Look at every page; return the exit status."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None or not SITE.is_dir():
        print(f"needs {' or '.join(NAMES)}, and {SITE}: make docs", file=sys.stderr)
        return 2
    files = sorted(SITE.rglob("index.html"))
    pages = ["" if one.parent == SITE else f"{one.parent.relative_to(SITE).as_posix()}/" for one in files]
    pages = [page for page in pages if page.startswith(tuple(sys.argv[1:]) or "")]
    wrong = 0
    with served(SITE) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        for page in pages:
            for width in WIDTHS:
                for scheme in SCHEMES:
                    for trouble in troubles(browser, address, page, width, scheme):
                        print(f"{page or 'index'} at {width}, {scheme}: {trouble}")
                        wrong += 1
        browser.close()
    print(f"{len(pages)} pages, {len(WIDTHS)} widths, {len(SCHEMES)} schemes: {wrong} troubles")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
