"""What clients ask in one session, as traffic.py asks it and simulation.py counts it. It needs Python alone."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final
from uuid import UUID

AGENTS: Final = [f"192.168.137.{number}" for number in range(10, 42)]
BUILDERS: Final = [f"192.168.138.{number}" for number in range(10, 18)]
HOSTILE: Final = "192.168.137.66"
PACKAGES: Final = ("requests", "numpy", "urllib3", "pyyaml", "pytest", "rich", "click", "anyio", "idna", "certifi")
REPOSITORIES: Final = tuple(f"acme/{name}" for name in ("app", "site", "tools", "infra", "sandbox-1", "sandbox-2"))


@dataclass(frozen=True, slots=True)
class Asked:
    """A request: `https` in a tunnel to its host, or plain `http`."""

    scheme: str
    host: str
    method: str
    path: str
    body: int = 0  # bytes


def requests_of(client: str, chosen: random.Random) -> Iterator[Asked]:
    """Yield one session of a client: some requests to one host."""
    if client == HOSTILE:
        host = f"drop-{chosen.randrange(10**6)}.evil.example"
        for _ in range(chosen.randint(1, 4)):
            yield Asked("https", host, "POST", f"/u/{chosen.randrange(10**9)}", 20_000)
        return
    kinds = _BUILDER_KINDS if client in BUILDERS else _AGENT_KINDS
    kind = chosen.choices([one for one, _ in kinds], [weight for _, weight in kinds])[0]
    yield from kind(chosen)


def _packages(chosen: random.Random) -> Iterator[Asked]:
    name = chosen.choice(PACKAGES)
    yield Asked("https", "pypi.org", "GET", f"/simple/{name}/")
    yield Asked("https", "pypi.org", "GET", f"/pypi/{name}/json")


def _files(chosen: random.Random) -> Iterator[Asked]:
    for _ in range(chosen.randint(1, 3)):
        digest, name = f"{chosen.getrandbits(240):060x}", chosen.choice(PACKAGES)
        path = f"/packages/{digest[:2]}/{digest[2:4]}/{digest[4:]}/{name}-{chosen.randint(1, 9)}.0-py3-none-any.whl"
        yield Asked("https", "files.pythonhosted.org", "GET", path)


def _npm(chosen: random.Random) -> Iterator[Asked]:
    for _ in range(chosen.randint(1, 4)):
        name = chosen.choice(("react", "left-pad", "@types%2fnode", "vite"))
        yield Asked("https", "registry.npmjs.org", "GET", f"/{name}")
    version = f"{chosen.randint(16, 19)}.{chosen.randint(0, 3)}.0"
    yield Asked("https", "registry.npmjs.org", "GET", f"/react/-/react-{version}.tgz")


def _issues(chosen: random.Random) -> Iterator[Asked]:
    repository = chosen.choice(REPOSITORIES)
    for _ in range(chosen.randint(1, 6)):
        yield Asked("https", "api.github.com", "GET", f"/repos/{repository}/issues/{chosen.randint(1, 4000)}")
    if chosen.random() < 0.3:
        yield Asked(
            "https", "api.github.com", "POST", f"/repos/{repository}/issues/{chosen.randint(1, 40)}/comments", 600
        )


def _clone(chosen: random.Random) -> Iterator[Asked]:
    repository = chosen.choice(REPOSITORIES)
    yield Asked("https", "github.com", "GET", f"/{repository}.git/info/refs?service=git-upload-pack")
    yield Asked("https", "github.com", "POST", f"/{repository}.git/git-upload-pack", 900)
    if chosen.random() < 0.05:
        yield Asked("https", "github.com", "POST", f"/{repository}.git/git-receive-pack", 4_000)


def _model(chosen: random.Random) -> Iterator[Asked]:
    for _ in range(chosen.randint(1, 8)):
        yield Asked("https", "api.anthropic.com", "POST", "/v1/messages", chosen.randint(500, 9_000))
    yield Asked("https", "api.anthropic.com", "GET", "/v1/models?limit=20")


def _vendor(chosen: random.Random) -> Iterator[Asked]:
    uuid = UUID(int=chosen.getrandbits(128), version=4)
    yield Asked("https", "api.vendor.example", "GET", f"/v2/jobs/{uuid}/status")
    yield Asked("https", "cdn.vendor.example", "GET", f"/assets/{chosen.getrandbits(128):032x}.js")


def _debian(chosen: random.Random) -> Iterator[Asked]:
    for suite in ("trixie", "trixie-updates"):
        yield Asked("http", "deb.debian.org", "GET", f"/debian/dists/{suite}/InRelease")
    name = chosen.choice(("curl", "git", "jq", "zstd"))
    yield Asked(
        "http", "deb.debian.org", "GET", f"/debian/pool/main/{name[0]}/{name}/{name}_{chosen.randint(1, 9)}.1_amd64.deb"
    )


def _closed(chosen: random.Random) -> Iterator[Asked]:
    host = chosen.choice(("en.wikipedia.org", "news.example", "telemetry.vendor-x.example", "www.example.net"))
    yield Asked("https", host, "GET", f"/{chosen.choice(('', 'wiki/Squid', 'a/b'))}")


_AGENT_KINDS = (
    (_packages, 14),
    (_files, 10),
    (_npm, 10),
    (_issues, 22),
    (_clone, 12),
    (_model, 20),
    (_vendor, 5),
    (_closed, 7),
)
_BUILDER_KINDS = ((_packages, 10), (_files, 20), (_npm, 15), (_clone, 15), (_debian, 35), (_closed, 5))
