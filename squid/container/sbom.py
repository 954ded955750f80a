"""Write what the image is made of as CycloneDX JSON: its Debian packages, and the
Python packages with squidkeeper, each with the licences that it names.

Usage: sbom.py DPKG_FOLDER SITE_PACKAGES REVISION_FILE > sbom.json, by the Python of
build.lock. The Containerfile runs it. The output is validated with CycloneDX's own
schema, strictly, before it is written.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from email.message import Message
from importlib.metadata import distributions
from pathlib import Path

from cyclonedx.contrib.license.exceptions import InvalidSpdxLicenseException
from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import License
from cyclonedx.output.json import JsonV1Dot6
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL

_FORMAT = "${Package}\t${Version}\t${Architecture}\t${source:Package}\n"
_DOCUMENTS = Path("/usr/share/doc")
_PARAGRAPH = re.compile(r"^License: *(\S.*)", re.MULTILINE)
_COMMON = re.compile(r"/usr/share/common-licenses/([\w+-]+(?:\.\d+)?)")
_CLASSIFIER = re.compile(r"License :: (?:OSI Approved :: )?(.+)")
_OPERATOR = re.compile(r" (AND|OR|WITH) ")
_LONGEST_NAME = 60  # the field can hold the whole text of a licence
_LICENCES = LicenseFactory()


def debian_packages(dpkg: str) -> Iterator[Component]:
    """List the packages in a folder of dpkg's."""
    command = ["dpkg-query", f"--admindir={dpkg}", "--show", f"--showformat={_FORMAT}"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout  # noqa: S603 - no shell
    for line in listed.splitlines():
        name, version, architecture, source = line.split("\t")
        where = {"arch": architecture} | (
            {"upstream": source} if source != name else {}
        )
        purl = PackageURL("deb", "debian", name, version, where)
        yield _component(name, version, purl, debian_licences(name, source))


def debian_licences(*packages: str) -> list[str]:
    """List the licences in the copyright file of the first package that has one.

    A file in the form of DEP 5 names them. Another one names texts that Debian has.
    """
    files = (_DOCUMENTS / package / "copyright" for package in packages)
    text = next(
        (file.read_text(errors="replace") for file in files if file.exists()), ""
    )
    named = _PARAGRAPH.findall(text) if text.startswith("Format:") else ()
    found = named or _COMMON.findall(text)
    return [*found] or [f"see {_DOCUMENTS}/{packages[0]}/copyright"]


def python_packages(folder: str) -> Iterator[Component]:
    """List the distributions that are installed in a folder."""
    for one in distributions(path=[folder]):
        name = one.metadata["Name"]
        purl = PackageURL("pypi", None, name.lower().replace("_", "-"), one.version)
        yield _component(name, one.version, purl, python_licences(one.metadata))


def python_licences(metadata: Message) -> list[str]:
    """List the licences that the metadata of a distribution name."""
    expression, text = metadata["License-Expression"], metadata["License"] or ""
    if expression:
        return [expression]
    classifiers = metadata.get_all("Classifier") or ()
    found = [named[1] for one in classifiers if (named := _CLASSIFIER.match(one))]
    if text and "\n" not in text and len(text) <= _LONGEST_NAME:
        return [text]
    return found or [f"see {file}" for file in metadata.get_all("License-File") or ()]


def _component(
    name: str, version: str, purl: PackageURL, licences: Iterable[str]
) -> Component:
    names = sorted({*map(str.strip, licences)})
    # CycloneDX takes an expression alone, or names beside each other.
    is_expression = len(names) == 1 and _OPERATOR.search(names[0])
    make = _LICENCES.make_from_string if is_expression else _licence
    return Component(
        name=name,
        version=version,
        type=ComponentType.LIBRARY,
        purl=purl,
        bom_ref=str(purl),
        licenses=map(make, names),
    )


def _licence(name: str) -> License:
    """Use the identifier of SPDX, where it is one."""
    try:
        return _LICENCES.make_with_id(name)
    except InvalidSpdxLicenseException:
        return _LICENCES.make_with_name(name)


def main() -> None:
    """Write the list to standard output."""
    dpkg, folder, revision = sys.argv[1:]
    python = list(python_packages(folder))
    version = next(one.version for one in python if one.name == "squidkeeper")
    # as `squidkeeper --version` tells it
    if known := Path(revision).read_text().strip():
        version = f"{version} ({known})"
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
