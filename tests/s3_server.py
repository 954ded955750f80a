"""An S3 server on loopback, over TLS: moto, with a certificate of a CA that only the
test trusts.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

from s3fs import S3FileSystem

from squidkeeper.operate.demo.authority import Authority
from squidkeeper.record.chain.store_settings import StoreKeys, StoreSettings

KEYS = StoreKeys(access_key_id="AKIATEST", secret_access_key="canary-secret-key")


@dataclass(frozen=True, slots=True)
class S3Server:
    """Where it listens, and the CA that it is trusted by."""

    endpoint: str
    ca: Path

    def settings(
        self, bucket: str, prefix: str, keys: StoreKeys = KEYS
    ) -> StoreSettings:
        url = f"s3://{bucket}/{prefix}"
        return StoreSettings(
            url=url,
            endpoint=self.endpoint,
            region="eu-central-1",
            ca_file=str(self.ca),
            keys=keys,
        )

    @property
    def files(self) -> S3FileSystem:
        """The server as its administrator has it."""
        client = {"verify": str(self.ca), "region_name": "eu-central-1"}
        return S3FileSystem(
            key=KEYS.access_key_id,
            secret=KEYS.secret_access_key,
            endpoint_url=self.endpoint,
            client_kwargs=client,
            use_listings_cache=False,
        )


Application = Callable[[dict[str, Any], Any], Any]


@contextmanager
def s3_server(
    folder: Path, around: Callable[[Application], Application] = lambda inner: inner
) -> Iterator[S3Server]:
    """Run it in the block; `around` can answer a request before it does."""
    from moto.moto_server.werkzeug_app import (
        DomainDispatcherApplication,
        create_backend_app,
    )
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    authority = Authority(folder)
    application = around(DomainDispatcherApplication(create_backend_app))
    context = authority.context("127.0.0.1")
    server = make_server(
        "127.0.0.1", 0, application, threaded=True, ssl_context=context
    )
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield S3Server(f"https://127.0.0.1:{server.server_port}", authority.certificate)
    server.shutdown()
    server.server_close()
    thread.join()
