"""mitmproxy at the same job as the gateway in bench.py: judge each request by its host, log each."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TextIO

from mitmproxy import ctx, http  # type: ignore[import-not-found] # in mitmproxy's own environment

CLOSED, OPEN = (".wikipedia.org",), ("bench.example",)


class Rules:
    """A list of closed hosts, one of open ones, and a record of JSON lines."""

    def load(self, loader: object) -> None:
        loader.add_option("record", str, "", "where the record goes")  # type: ignore[attr-defined] # it has no types
        self._record: TextIO | None = None

    def request(self, flow: http.HTTPFlow) -> None:
        host = flow.request.pretty_host
        rule = "closed" if f".{host}".endswith(CLOSED) else "open" if host in OPEN else "default"
        flow.metadata["rule"] = rule
        if rule != "open":
            flow.response = http.Response.make(403, f"Rule: {rule}\n")

    def response(self, flow: http.HTTPFlow) -> None:
        if self._record is None:
            self._record = Path(ctx.options.record).open("a", buffering=1)  # noqa: SIM115 - for as long as it runs
        told = {
            "time": time.time(),
            "client": flow.client_conn.peername[0],
            "method": flow.request.method,
            "url": flow.request.url,
            "status": flow.response.status_code,
            "rule": flow.metadata["rule"],
        }
        self._record.write(json.dumps(told) + "\n")


addons = [Rules()]
