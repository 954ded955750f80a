"""A real browser: headless Chromium, which says what became of a page, and asks for
everything here.
"""

import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from html import unescape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

_PROBE = """<!doctype html>
<meta charset="utf-8"><title>probe</title><link rel="icon" href="data:,">
{frames}
<pre id="found"></pre>
<script>
  const flat = (text) => text.replace(/\\s+/g, " ").trim();
  const shown = (one) => one.getClientRects().length > 0;
  function squeezed(one) {{
    const own = [...one.childNodes].filter((node) => node.nodeType === 3).map((node) => flat(node.data)).join(" ");
    return shown(one) && own.length > 40 && one.getBoundingClientRect().width < 100;
  }}
  function look(frame) {{
    const page = frame.contentDocument, root = page.documentElement;
    const boxes = [...page.querySelectorAll("body *")].filter((one) => !one.closest(".scroll, title, desc"));
    const outside = boxes.filter((one) => one.getBoundingClientRect().right > root.clientWidth + 1);
    return {{
      page: frame.name,
      width: frame.width,
      overflow: root.scrollWidth - root.clientWidth,
      outside: outside.map((one) => one.outerHTML.slice(0, 200)),
      scrolled: [...page.querySelectorAll(".scroll")].filter((one) => one.scrollWidth > one.clientWidth + 1)
        .map((one) => one.closest("section").id),
      squeezed: boxes.filter(squeezed).map((one) => one.outerHTML.slice(0, 200)),
      background: getComputedStyle(page.body).backgroundColor,
      rows: [...page.querySelectorAll("tr")].filter(shown).map((row) => flat(row.innerText)),
      text: flat(page.body.innerText),
      loaded: frame.contentWindow.performance.getEntriesByType("resource").map((one) => one.name),
      pictures: [...page.querySelectorAll("svg")].filter(shown).length,
    }};
  }}
  addEventListener("load", () => {{
    const found = [...document.querySelectorAll("iframe")].map(look);
    document.getElementById("found").textContent = JSON.stringify([...found, {{ran: window.ran || []}}]);
  }});
</script>
"""


# Chromium asks these for itself, whatever it is told; a page that asks others is seen.
_ITS_OWN = re.compile(
    r"(http://)?(update\.googleapis|clients2\.google|accounts\.google)\.com\b.*"
)


@dataclass(frozen=True, slots=True)
class View:
    """One page at one width, as it was laid out."""

    page: str
    width: str
    overflow: int  # pixels by which the document is wider than its window
    # elements that reach beyond the window, those that scroll in a box of their own
    # left out
    outside: list[str]
    # IDs of the sections with a box that is wider than the window and scrolls
    scrolled: list[str]
    # elements whose words stand below each other in a column that is too narrow
    squeezed: list[str]
    background: str
    rows: list[str]  # the text of each table row that is shown
    text: str
    loaded: list[str]  # what it loaded besides itself
    pictures: int


@dataclass(slots=True)
class Visit:
    """What a browser made of some pages, and what it did besides."""

    views: dict[tuple[str, int], View] = field(default_factory=dict)
    # scripts of the pages that ran: `top.ran = [...]`
    ran: list[int] = field(default_factory=list)
    asked_for: set[str] = field(default_factory=set)
    console: list[str] = field(default_factory=list)


def visit(
    pages: Mapping[str, str], widths: tuple[int, ...], *, dark: bool = False
) -> Visit:
    """Open pages, each at each width, in a browser that reaches only this function."""
    frames = "".join(
        f'<iframe name="{name}" src="/{name}" width="{width}" height="900"></iframe>'
        for name in pages
        for width in widths
    )
    site = _Site(
        {
            **{f"/{name}": html for name, html in pages.items()},
            "/probe": _PROBE.format(frames=frames),
        }
    )
    home = tempfile.mkdtemp(prefix="squidkeeper-browser-")
    try:
        dom, errors = _dump(site, home, dark=dark)
    finally:
        site.stop()
        shutil.rmtree(home, ignore_errors=True)
    *views, probe = json.loads(
        unescape(dom.partition('<pre id="found">')[2].partition("</pre>")[0])
    )
    seen = [View(**view) for view in views]
    console = [
        line
        for line in errors.splitlines()
        if "CONSOLE" in line and "source: chrome://" not in line
    ]
    return Visit(
        {(view.page, int(view.width)): view for view in seen},
        probe["ran"],
        site.asked_for,
        console,
    )


def _dump(site: "_Site", home: str, *, dark: bool) -> tuple[str, str]:
    """Print the probe as it is when all has loaded.

    Whatever the browser asks for, it asks the site, as a proxy.
    """
    command = [
        *(
            "chromium",
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--no-first-run",
            f"--user-data-dir={home}",
        ),
        *(
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--disable-dev-shm-usage",
        ),
        *("--disable-extensions", "--disable-default-apps"),
        *(
            f"--proxy-server=127.0.0.1:{site.port}",
            "--proxy-bypass-list=<-loopback>",
            "--enable-logging=stderr",
        ),
        *(
            f"--blink-settings=preferredColorScheme={0 if dark else 1}",
            "--window-size=1600,1000",
            "--dump-dom",
        ),
        "http://pages.example/probe",
    ]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
    )
    return done.stdout, done.stderr


class _Site:
    """Serves pages on loopback, also to who takes it for a proxy, and notes what was
    asked for.
    """

    def __init__(self, pages: Mapping[str, str]) -> None:
        asked_for: set[str] = set()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if not _ITS_OWN.fullmatch(self.path):
                    asked_for.add(self.path)
                html = pages.get(self.path.removeprefix("http://pages.example"))
                self.send_response(404 if html is None else 200)
                self.send_header("Content-Type", "text/html; charset=utf-8")
                self.end_headers()
                self.wfile.write((html or "").encode())

            do_POST = do_CONNECT = do_HEAD = do_GET  # noqa: N815 - named by http.server

            def log_message(self, *_: Any) -> None:
                pass

        self.asked_for = asked_for
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
