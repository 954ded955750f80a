"""The presets that the files of a policy name."""

from collections.abc import Iterable, Iterator

from squidkeeper.base.faults import Fault, FaultCode, Location
from squidkeeper.policy.language.document import Document, all_entries


def named_presets(documents: Iterable[Document]) -> Iterator[tuple[str, Location]]:
    """Give the names of presets that stand in files, unchecked, and where."""
    for document in documents:
        for _, entry, steps in all_entries(document, "presets"):
            name = entry.get("preset") if isinstance(entry, dict) else entry
            if isinstance(name, str):
                yield name, document.locate(steps)


def are_known(documents: Iterable[Document], there_are: frozenset[str]) -> bool:
    """Tell whether there are all presets that files name."""
    return all(name in there_are for name, _ in named_presets(documents))


def entry_faults(documents: Iterable[Document]) -> Iterator[Fault]:
    """Find the presets that are named twice."""
    seen: dict[str, Location] = {}
    for name, location in named_presets(documents):
        first = seen.setdefault(name, location)
        if first is not location:
            message = f"preset {name!r} is named twice, first at {first}; expected it once, with all its clients"
            yield Fault(location, FaultCode.DUPLICATE_NAME, message)
