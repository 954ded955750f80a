"""One revision of a policy as helpers read it: a file that is mapped into memory.

    magic, format    8 bytes; the format is the number at the end
    digest           32 bytes: BLAKE2b of all that follows
    size             8 bytes: of the contents
    contents         MessagePack: `_Contents`
    rules            one value of the codec after the other, in the policy's order

A rule is read when a host is asked for that it is for. So a helper holds the rules that
its clients use, and starts without reading the others.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from hashlib import blake2b
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Final, cast, overload

import msgspec

from squidkeeper.base.errors import InvalidPublication, OtherPolicy
from squidkeeper.base.untrusted_file import open_untrusted
from squidkeeper.policy.engine import CompiledPolicy
from squidkeeper.policy.engine.rule_index import RuleIndex, RuleKey
from squidkeeper.policy.engine.timetable import Timed
from squidkeeper.policy.language.host_index import HostIndex, KeptIndex
from squidkeeper.policy.language.host_lists import HostList
from squidkeeper.policy.language.hosts import Network
from squidkeeper.policy.language.model import Policy, Rule
from squidkeeper.policy.published.codec import decode, encode

FORMAT: Final = 3
LARGEST_BYTES: Final = 256 << 20
_MAGIC: Final = f"sqkpol{FORMAT:02}".encode()
_HEAD: Final = struct.Struct(">8s32sQ")
_BODY_AT: Final = 8 + 32  # what the digest is of
ListReader = Callable[[str], HostList]


class _Contents(msgspec.Struct, array_like=True, frozen=True):
    """All but the rules.

    Fields of bytes are values of the codec.
    """

    settings: bytes  # the policy, without its rules, lists and tests
    names: list[str]
    ends: list[int]  # of each rule, from the first rule on
    by_key: dict[str, list[int]]
    by_network: bytes
    by_list: dict[str, list[int]]
    has_wildcards: bool
    timed: bytes
    methods: list[str]
    reads_bodies: bool
    meters: bool
    of_variables: list[int]
    lists: dict[str, str]  # the digest of each, by name
    places: bytes  # where each list is named
    needs: list[str]
    directory: str  # of the files


class PublishedRules(Sequence[Rule]):
    """The rules of a publication: each is read when it is first asked for."""

    def __init__(self, data: mmap.mmap, begin: int, ends: Sequence[int]) -> None:
        self._data = data
        self._places = list(pairwise([begin, *(begin + end for end in ends)]))
        self._read: list[Rule | None] = [None] * len(ends)

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, position: int) -> Rule: ...
    @overload
    def __getitem__(self, position: slice) -> tuple[Rule, ...]: ...
    def __getitem__(self, position: int | slice) -> Rule | tuple[Rule, ...]:
        """Return a rule; `InvalidPublication` where what is there is none."""
        if isinstance(position, slice):
            return tuple(self[one] for one in range(len(self))[position])
        rule = self._read[position]
        if rule is None:
            begin, end = self._places[position]
            rule = self._read[position] = cast(Rule, decode(self._data[begin:end]))
        return rule

    def __iter__(self) -> Iterator[Rule]:
        return (self[position] for position in range(len(self)))

    def __eq__(self, other: object) -> bool:
        """Compare with other rules, one by one."""
        return isinstance(other, Sequence) and list(self) == list(other)

    def __hash__(self) -> int:
        """Return a hash that is equal where the rules are."""
        return hash(tuple(self))


def write_publication(
    policy: CompiledPolicy, needs: frozenset[str], directory: Path
) -> bytes:
    """Write the policy of a directory; `needs` are the keys of Squid's configuration
    that it needs.
    """
    source, index = policy.source, policy.index
    kept = index.hosts.kept
    rules = [encode(rule) for rule in source.rules]
    contents = _Contents(
        settings=encode(replace(source, rules=(), lists={}, tests=())),
        names=list(index.names),
        ends=list(accumulate(map(len, rules))),
        by_key=kept.by_key,
        by_network=encode(tuple(kept.by_network)),
        by_list=kept.by_list,
        has_wildcards=kept.has_wildcards,
        timed=encode(dict(index.timed)),
        methods=sorted(index.methods),
        reads_bodies=index.reads_bodies,
        meters=index.meters,
        of_variables=sorted(index.of_variables),
        lists={name: hosts.digest for name, hosts in source.lists.items()},
        places=encode({name: hosts.location for name, hosts in source.lists.items()}),
        needs=sorted(needs),
        directory=str(directory.absolute()),
    )
    head = msgspec.msgpack.encode(contents)
    body = struct.pack(">Q", len(head)) + head + b"".join(rules)
    return _MAGIC + blake2b(body, digest_size=32).digest() + body


def read_publication(
    path: Path, read_list: ListReader, directory: Path
) -> CompiledPolicy:
    """Read the policy of a directory; OSError where the file cannot be read,
    `InvalidPublication` where it is none of this format, `OtherPolicy` where it is that
    of another directory.

    `read_list` returns the compiled list of a digest.
    """
    data = _mapped(path)
    magic, digest, size = _HEAD.unpack_from(data)
    if magic != _MAGIC:
        raise InvalidPublication(f"{path} has another format than {FORMAT}")
    with memoryview(data) as view, view[_BODY_AT:] as body:
        if blake2b(body, digest_size=32).digest() != digest:
            raise InvalidPublication(f"{path} is damaged: its digest is another one")
    end = _HEAD.size + size
    try:
        contents = msgspec.msgpack.decode(data[_HEAD.size : end], type=_Contents)
    except (msgspec.DecodeError, ValueError) as error:
        raise InvalidPublication(f"{path} cannot be read: {error}") from error
    if contents.directory != str(directory.absolute()):
        raise OtherPolicy(
            f"{path} is the policy of {contents.directory}, not of {directory}:"
            " give each policy a state folder of its own (--state)"
        )
    return _compiled(contents, PublishedRules(data, end, contents.ends), read_list)


def _compiled(
    contents: _Contents, rules: PublishedRules, read_list: ListReader
) -> CompiledPolicy:
    places = decode(contents.places)
    lists = {
        name: replace(read_list(digest), location=places[name])
        for name, digest in contents.lists.items()
    }
    networks: tuple[tuple[Network, int], ...] = decode(contents.by_network)
    kept = KeptIndex(
        contents.by_key,
        list(networks),
        contents.by_list,
        has_wildcards=contents.has_wildcards,
    )
    timed: Mapping[RuleKey, Timed] = decode(contents.timed)
    index = RuleIndex(
        hosts=HostIndex((), lists, kept),
        names=contents.names,
        timed=timed,
        methods=frozenset(contents.methods),
        reads_bodies=contents.reads_bodies,
        meters=contents.meters,
        of_variables=frozenset(contents.of_variables),
        needs=frozenset(contents.needs),
    )
    settings: Policy = decode(contents.settings)
    return CompiledPolicy(replace(settings, rules=rules, lists=lists), index)


def _mapped(path: Path) -> mmap.mmap:
    with closing(open_untrusted(path)) as file:
        size = os.fstat(file.fileno()).st_size
        if not _HEAD.size <= size <= LARGEST_BYTES:
            expected = f"expected {_HEAD.size} to {LARGEST_BYTES:,}"
            raise InvalidPublication(f"{path} has {size:,} bytes, {expected}")
        return mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
