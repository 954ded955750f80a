"""Write what the image is made of as CycloneDX JSON: its Debian packages, and the
Python packages with squidkeeper.

Usage: sbom.py DPKG_FOLDER SITE_PACKAGES > sbom.json, by the Python of build.lock. The
Containerfile runs it. The output is validated with CycloneDX's own schema, strictly,
before it is written.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import distributions

from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL

_FORMAT = "${Package}\t${Version}\t${Architecture}\t${source:Package}\n"


def debian_packages(dpkg: str) -> Iterator[Component]:
    """List the packages in a folder of dpkg's."""
    command = ["dpkg-query", f"--admindir={dpkg}", "--show", f"--showformat={_FORMAT}"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout  # noqa: S603 - no shell
    for line in listed.splitlines():
        name, version, architecture, source = line.split("\t")
        where = {"arch": architecture} | (
            {"upstream": source} if source != name else {}
        )
        yield _component(
            name, version, PackageURL("deb", "debian", name, version, where)
        )


def python_packages(folder: str) -> Iterator[Component]:
    """List the distributions that are installed in a folder."""
    for one in distributions(path=[folder]):
        name = one.metadata["Name"]
        yield _component(
            name,
            one.version,
            PackageURL("pypi", None, name.lower().replace("_", "-"), one.version),
        )


def _component(name: str, version: str, purl: PackageURL) -> Component:
    return Component(
        name=name,
        version=version,
        type=ComponentType.LIBRARY,
        purl=purl,
        bom_ref=str(purl),
    )


def main() -> None:
    """Write the list to standard output."""
    dpkg, folder = sys.argv[1:]
    python = list(python_packages(folder))
    version = next(one.version for one in python if one.name == "squidkeeper")
    bom = Bom(components=[*debian_packages(dpkg), *python])
    bom.metadata.component = Component(
        name="squidkeeper-gateway", version=version, type=ComponentType.CONTAINER
    )
    text = JsonV1Dot6(bom).output_as_string(indent=1)
    if problem := JsonStrictValidator(SchemaVersion.V1_6).validate_str(text):
        sys.exit(f"sbom.py: CycloneDX does not accept the list: {problem}")
    sys.stdout.write(f"{text}\n")


if __name__ == "__main__":
    main()
