"""Rules that are shipped with the program, one file for each preset and version:
`npm@2.yaml`.

A version never changes once it is shipped: another content is another version.
tests/policy/test_presets.py has their hashes.
"""

from pathlib import Path

from squidkeeper.base.faults import Location
from squidkeeper.policy.language.document import Document, parse_document

_FOLDER = Path(__file__).parent
_SUFFIX = ".yaml"


def preset_names() -> frozenset[str]:
    """List the presets that there are, each with its version: `npm@2`."""
    return frozenset(file.stem for file in _FOLDER.glob(f"*{_SUFFIX}"))


def preset_text(name: str) -> str:
    """Read the text of a preset; OSError if there is none of this name."""
    return (_FOLDER / f"{name}{_SUFFIX}").read_text("utf-8")


def read_preset(name: str) -> Document:
    """Read a preset; OSError if there is none of this name."""
    return parse_preset(name, (_FOLDER / f"{name}{_SUFFIX}").read_bytes())


def parse_preset(name: str, content: bytes) -> Document:
    """Parse the content of a preset.

    Its places name the preset, as its file moves with each release.
    """
    return parse_document(Path(preset_location(name).file), content)


def preset_location(name: str) -> Location:
    """Name a preset as the place of a rule: `preset npm@2`."""
    return Location(f"preset {name}")
