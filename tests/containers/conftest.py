"""The images, built once a run."""

from collections.abc import Iterator

import pytest

from .podman import REPOSITORY, Podman


@pytest.fixture(scope="session")
def podman() -> Iterator[Podman]:
    """Podman with both images."""
    with Podman.opened() as podman:
        podman.import_base()
        for containerfile, tag in (
            ("Containerfile", "squidkeeper"),
            ("squid/container/agent.Containerfile", "squidkeeper-agent"),
        ):
            if podman.run("image", "exists", tag, check=False).returncode:
                podman.build(REPOSITORY / containerfile, tag)
        yield podman
