"""Podman with a storage of its own, and what it needs on a machine without systemd."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

REPOSITORY = Path(__file__).parents[2]
BASE = "debian:trixie-slim"  # as the Containerfiles name it
# builds ask the registries of this machine, whose certificates it knows
TRUST = "/etc/ssl/certs"


def _is_overlay_there(folder: Path) -> bool:
    """Whether the kernel can stack file systems here: without, each layer is a copy."""
    parts = [folder / name for name in ("lower", "upper", "work", "merged")]
    for part in parts:
        part.mkdir(parents=True)
    options = "lowerdir={},upperdir={},workdir={}".format(*parts[:3])
    mounted = (
        subprocess.run(
            ["mount", "-t", "overlay", "-o", options, "overlay", parts[3]], check=False
        ).returncode
        == 0
    )
    if mounted:
        subprocess.run(["umount", parts[3]], check=True)
    shutil.rmtree(folder)
    return mounted


@dataclass
class Podman:
    """Podman with everything below one folder."""

    folder: Path
    environment: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        driver = "overlay" if _is_overlay_there(self.folder / "try") else "vfs"
        processes = resource.getrlimit(resource.RLIMIT_NPROC)[1]
        storage, containers = (
            self.folder / "storage.conf",
            self.folder / "containers.conf",
        )
        storage.write_text(
            f'[storage]\ndriver = "{driver}"\ngraphroot = "{self.folder}/storage"\nrunroot = "{self.folder}/run"\n'
        )
        containers.write_text(
            f'[containers]\ndefault_ulimits = ["nofile=20000:20000", "nproc={processes}:{processes}"]\n'
            f'[network]\nnetwork_config_dir = "{self.folder}/networks"\n'
            '[engine]\nruntime = "runc"\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n'
        )
        self.environment = {
            **os.environ,
            "CONTAINERS_CONF": str(containers),
            "CONTAINERS_STORAGE_CONF": str(storage),
            "PODMAN_IGNORE_CGROUPSV1_WARNING": "1",
        }

    def run(
        self, *words: str | Path, check: bool = True, program: str = "podman"
    ) -> subprocess.CompletedProcess[str]:
        """Run podman; output and errors are captured together."""
        done = subprocess.run(
            [program, *words],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            cwd=REPOSITORY,
        )
        assert not check or done.returncode == 0, f"{done.args}\n{done.stdout}"
        return done

    def start(self, *words: str | Path, program: str) -> subprocess.Popen[bytes]:
        """Start a command that waits for something."""
        return subprocess.Popen(
            [program, *words],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            cwd=REPOSITORY,
        )

    def build(self, containerfile: Path, tag: str) -> None:
        """Build an image as the documents say, by the machine's own network."""
        how = (
            "--format",
            "docker",
            "--layers=false",
            "--pull=never",
            "--network",
            "host",
            "-v",
            f"{TRUST}:{TRUST}:ro",
        )
        self.run("build", *how, "--file", containerfile, "--tag", tag, REPOSITORY)

    def import_base(self) -> None:
        """Make the image that the Containerfiles begin with, from Debian's packages."""
        self.import_suite(BASE.partition(":")[2].removesuffix("-slim"), BASE)

    def import_suite(
        self, suite: str, tag: str, *packages: str, components: str = "main"
    ) -> None:
        """Make an image of a suite's packages, of Debian or Ubuntu as its
        name tells.
        """
        if self.run("image", "exists", tag, check=False).returncode == 0:
            return
        with tempfile.NamedTemporaryFile(suffix=".tar") as archive:
            include = ",".join(("ca-certificates", *packages))
            which = (
                "--variant=minbase",
                f"--components={components}",
                f"--include={include}",
            )
            words = ("--quiet", *which, suite, archive.name)
            self.run(*words, program="mmdebstrap")
            self.run("import", "--quiet", archive.name, tag)

    @classmethod
    @contextmanager
    def opened(cls) -> Iterator[Self]:
        """Podman until the end of a test run.

        SQUIDKEEPER_IMAGES names a folder that keeps its images for more runs.
        """
        kept = os.environ.get("SQUIDKEEPER_IMAGES")
        folder = Path(kept or tempfile.mkdtemp(prefix="squidkeeper-images-"))
        folder.mkdir(exist_ok=True)
        folder.chmod(0o755)
        podman = cls(folder)
        yield podman
        if not kept:
            podman.remove()

    def remove(self) -> None:
        """Stop and remove everything."""
        self.run("rm", "--all", "--force", "--time", "1", check=False)
        self.run("system", "reset", "--force", check=False)
        shutil.rmtree(self.folder, ignore_errors=True)
