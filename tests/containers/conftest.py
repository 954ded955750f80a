"""The images, built once a run."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from .podman import REPOSITORY, Podman


@pytest.fixture(scope="session")
def podman() -> Iterator[Podman]:
    """Podman with both images. SQUIDKEEPER_IMAGES names a folder that keeps them, for many runs of these tests."""
    kept = os.environ.get("SQUIDKEEPER_IMAGES")
    folder = Path(kept or tempfile.mkdtemp(prefix="squidkeeper-images-"))
    folder.mkdir(exist_ok=True)
    folder.chmod(0o755)
    podman = Podman(folder)
    podman.import_base()
    for containerfile, tag in (
        ("Containerfile", "squidkeeper"),
        ("squid/container/agent.Containerfile", "squidkeeper-agent"),
    ):
        if not kept or podman.run("image", "exists", tag, check=False).returncode:
            podman.build(REPOSITORY / containerfile, tag)
    yield podman
    if not kept:
        podman.remove()
