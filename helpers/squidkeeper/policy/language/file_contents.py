"""What a policy is built from: the contents of its files, as data."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from squidkeeper.base.faults import Fault, FaultCode
from squidkeeper.policy.language.document import Document
from squidkeeper.policy.language.host_lists import HostList


@dataclass(frozen=True, slots=True)
class FileProblem:
    """Why a file cannot be read."""

    code: FaultCode
    reason: str

    def __str__(self) -> str:
        return self.reason


@dataclass(frozen=True, slots=True)
class SecretFile:
    """A secret file, its content unread: whether everyone can read it, or why it is
    unavailable.
    """

    open_to_others: bool = False
    problem: FileProblem | None = None


@dataclass(frozen=True, slots=True)
class PolicyContents:
    """The contents of a policy's files, under the name of their revision.

    `lists` and `secrets` have the files that the documents name, `presets` the presets,
    by name; `preset_names` are all that there are. `environment` has the names of the
    variables that are set and not empty. `faults` are those of files that cannot be
    read. `granted` is the document, the last of them, with what commands grant; `local`
    is the one with the local setup.
    """

    revision: str
    documents: tuple[Document, ...]
    lists: Mapping[Path, HostList | FileProblem]
    secrets: Mapping[Path, SecretFile]
    environment: frozenset[str]
    faults: tuple[Fault, ...] = ()
    granted: Document | None = None
    local: Document | None = None
    presets: Mapping[str, Document] = field(default_factory=dict)
    preset_names: frozenset[str] = frozenset()
