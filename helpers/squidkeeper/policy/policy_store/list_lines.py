"""What the lines of a list mean: host patterns, hosts(5), Adblock's `||host^`, dnsmasq,
RPZ.

A line is understood where it names hosts and says nothing else. One that says more (a
path, an option), less (unless, only if) or something else is `PatternError`, never a
guess: in a deny a guess closes what nobody meant, in an allow it opens it.
"""

import re
from collections.abc import Callable
from ipaddress import ip_address

from squidkeeper.base.errors import PatternError
from squidkeeper.policy.language.hosts import HostForm, HostPattern, parse_host_pattern

_Read = Callable[[str], list[HostPattern]]


class LineReader:
    """Reads the lines of one list in their order: some lines change how the next ones
    are read.
    """

    def __init__(self) -> None:
        self._read: _Read = self._read_any
        self._plain = _ALL_PLAIN
        self._under_line = self._under_key = _NO_LINE
        self._outside: _Read = self._read_any
        self._conditions = 0
        self._apex: str | None = None  # of a zone, if a line names it
        self._origin: str | None = (
            None  # what names without a dot at the end are relative to; None: the apex
        )

    def plain_key(self, line: str) -> str | None:
        """Return the key of a line in one of the usual spellings; None: `patterns` can
        read it.
        """
        if line == self._under_line:
            return self._under_key
        match = _PLAIN_LINE.fullmatch(line)
        form = match.lastindex if match else None
        if match is None or form not in self._plain or len(line) > _PLAIN_LENGTH:
            return None
        if form == _RECORD_END:
            return self._plain_record_key(
                line, match[_PATTERN], match[_RECORD_END].startswith(".")
            )
        return match[form] if form in (_HOSTS, _PATTERN) else f".{match[form]}"

    def _plain_record_key(self, line: str, owner: str, absolute: bool) -> str | None:
        if absolute:
            name = owner.removesuffix(f".{self._apex}")
            owner = name if name != owner and _PLAIN_OWNER.fullmatch(name) else "."
        if owner.startswith("*."):
            return f"*{owner}"
        if owner.startswith((".", "*")):
            return None
        # most often the next line
        self._under_line, self._under_key = (
            f"*.{line}",
            f"{HostForm.UNDER}{owner}",
        )
        return owner

    def patterns(self, line: str) -> list[HostPattern]:
        """Read a line; `PatternError` where it is not understood.

        A comment is no pattern.
        """
        if len(line) > _LINE_LENGTH:
            raise PatternError("it is too long for a line of a list")
        return self._read(line.removeprefix("\ufeff"))

    # --- ways of reading --------------------------------------------------------------

    def _enter(self, read: _Read) -> None:
        self._under_line = _NO_LINE
        self._read = read
        if read == self._read_any and self._origin == self._apex:
            self._plain = _ALL_PLAIN
        else:
            self._plain = _ADBLOCK_PLAIN if read == self._read_adblock else _NONE_PLAIN

    def _read_any(self, line: str) -> list[HostPattern]:
        text = line.strip()
        if text.startswith(("|", "!")) or _ADBLOCK_HEADER.fullmatch(text):
            return self._read_adblock(text)
        if text.startswith(("$", ";")):
            return self._directive(text)
        dnsmasq = _DNSMASQ.fullmatch(text)
        if dnsmasq:
            return _dnsmasq_patterns(
                dnsmasq["option"], dnsmasq["names"].split("/"), dnsmasq["value"]
            )
        words = _words(text)
        if len(words) > 1 and not _is_address(words[0]):
            return self._record(line.rstrip())
        return _hosts_line(words) if len(words) > 1 else [_bare(word) for word in words]

    def _read_adblock(self, line: str) -> list[HostPattern]:
        text = line.strip()
        if text.startswith("!#"):
            return self._read_preprocessor(text)
        if _ADBLOCK_HEADER.fullmatch(
            text
        ):  # in this format a bare word is a filter, not a host
            self._enter(self._read_adblock)
            return []
        if text.startswith("!") or not _words(text):
            return []
        match = _ADBLOCK.fullmatch(text)
        if match is None:
            raise PatternError("it is not Adblock's ||host^ alone")
        return [
            parse_host_pattern(match[1])
            if _is_address(match[1])
            else _named(HostForm.TREE, match[1])
        ]

    def _read_preprocessor(self, text: str) -> list[HostPattern]:
        if text.startswith("!#if"):
            self._outside, self._conditions = self._read, 1
            self._enter(self._read_condition)
        raise PatternError(
            "what stands under a condition, or in another file, is not known"
        )

    def _read_condition(self, line: str) -> list[HostPattern]:
        text = line.strip()
        self._conditions += text.startswith("!#if") - text.startswith("!#endif")
        if not self._conditions:
            self._enter(self._outside)
        if not text or (text.startswith("!") and not text.startswith("!#")):
            return []
        raise PatternError("it holds under a condition alone")

    # --- zones ------------------------------------------------------------------------

    def _directive(self, text: str) -> list[HostPattern]:
        match = _DIRECTIVE.fullmatch(text)
        if match is None:
            raise PatternError("it is not a directive of a zone that names no hosts")
        if match["origin"]:
            self._move(self._absolute(match["origin"]))
        return []

    def _move(self, origin: str | None) -> None:
        self._origin = origin
        self._apex = origin if self._apex is None else self._apex
        self._enter(self._read_any)

    def _record(self, line: str) -> list[HostPattern]:
        match = _RECORD.fullmatch(line)
        if match is None:
            raise PatternError(
                "it is neither one host pattern, nor an address with its names, nor a CNAME of a zone"
            )
        if match["type"].upper() == "CNAME":
            return [self._owner_pattern(match["owner"], match["data"].rstrip())]
        if match["type"].upper() == "SOA":
            self._begin_zone(match["owner"], match["data"])
        return []

    def _owner_pattern(self, owner: str, target: str) -> HostPattern:
        if target != ".":
            raise PatternError("an action other than 'CNAME .' is not known")
        name = self._under_apex(owner)
        if _RPZ_TRIGGER.search(name):
            raise PatternError(
                "a trigger other than the name that is asked for is not known"
            )
        if name.startswith("*."):
            return _named(HostForm.UNDER, name.removeprefix("*."))
        return _named(HostForm.EXACT, name)

    def _under_apex(self, owner: str) -> str:
        """Return the name below the zone that an owner stands for: the zone's own name
        is not part of it.
        """
        if self._origin == self._apex and not owner.endswith("."):
            return owner.lower()
        name, apex = self._absolute(owner), self._apex
        if not apex or name is None or not name.endswith(f".{apex}"):
            raise PatternError("whether its name is below the zone's own is not known")
        return name.removesuffix(f".{apex}")

    def _absolute(self, name: str) -> str | None:
        if name.endswith("."):
            return name.lower().removesuffix(".")
        if name == "@":
            return self._origin
        return (
            f"{name.lower()}.{self._origin}".removesuffix(".")
            if self._origin is not None
            else None
        )

    def _begin_zone(self, owner: str, data: str) -> None:
        apex = self._absolute(owner) if owner else None
        if apex is not None:
            self._origin = apex if self._origin is None else self._origin
            self._apex = apex
        self._enter(
            self._read_soa if "(" in data and ")" not in data else self._read_any
        )

    def _read_soa(self, line: str) -> list[HostPattern]:
        match = _SOA_NUMBERS.fullmatch(line)
        if match is None or match["end"]:
            self._enter(self._read_any)
        return [] if match else self._read_any(line)


def is_exception(text: str) -> bool:
    """Whether a line that is not understood excludes hosts from the list."""
    return bool(_EXCEPTION.match(text)) or any(
        word in text.lower() for word in ("$badfilter", ",badfilter", "rpz-passthru")
    )


# --- forms ----------------------------------------------------------------------------


def _words(text: str) -> list[str]:
    """Split a line at its spaces, a comment left out; `PatternError` for Adblock's
    element hiding (`host##.banner`).
    """
    if _HIDING.match(text):
        raise PatternError("what of a page is hidden is not known")
    return text.partition("#")[0].split()


def _bare(word: str) -> HostPattern:
    if word.isdecimal():
        raise PatternError("a number alone is more likely a counter than an address")
    return parse_host_pattern(word)


def _hosts_line(words: list[str]) -> list[HostPattern]:
    if "CNAME" in words:
        raise PatternError("an address as the owner of a record is not known")
    names = (
        word
        for word in words[1:]
        if not _LOCAL.fullmatch(word.lower()) and not _is_address(word)
    )
    return [_named(HostForm.EXACT, name) for name in names]


def _dnsmasq_patterns(option: str, names: list[str], value: str) -> list[HostPattern]:
    if value and (option != "address" or not (value == "#" or _is_address(value))):
        raise PatternError(
            "where dnsmasq asks for a host is not whether it may be reached"
        )
    return [_named(HostForm.TREE, name.removeprefix(".")) for name in names]


def _named(form: HostForm, name: str) -> HostPattern:
    pattern = parse_host_pattern(f"{form}{name}")
    if pattern.form is not form:
        raise PatternError(f"{name!r} is not a host name")
    return pattern


def _is_address(word: str) -> bool:
    if (
        ":" not in word and not word[:1].isdecimal()
    ):  # the answer for most words, at a tenth of what an error costs
        return False
    try:
        ip_address(word.strip("[]").partition("%")[0])  # macOS writes fe80::1%lo0
    except ValueError:
        return False
    return True


_LOCAL = re.compile(
    r"localhost[46]?(\.localdomain[46]?)?|local|localdomain|broadcasthost|ip6-[^.]*"
)
_ADBLOCK_HEADER = re.compile(r"\[(?:adblock|adguard|ublock)[^\]]*\]", re.IGNORECASE)
_ADBLOCK = re.compile(
    r"\|\|([^\s/^$|*:]+|\[[0-9A-Fa-f:.]+\])\^(?:\$(?:important|all))?(?:\s+#.*)?"
)
_HIDING = re.compile(
    r"[^\s#]+#[@?$%]{0,3}#|#[@?$%]{0,3}#(?:[.\[*:]|#[A-Za-z]|[a-z]+[.#\[:>])|#@"
)
_DNSMASQ = re.compile(
    r"(?P<option>address|server|local)=/(?P<names>\S+)/(?P<value>[^/\s]*)(?:\s+#.*)?"
)
_DIRECTIVE = re.compile(
    r";.*|\$TTL\s.*|\$ORIGIN\s+(?P<origin>\S+)\s*(?:;.*)?", re.IGNORECASE
)
_RECORD = re.compile(
    r"(?P<owner>[^\s;]*)\s+(?:(?:[0-9]+[smhdw]?|IN)\s+)*(?P<type>SOA|NS|CNAME)\s+(?P<data>[^;]*)(?:;.*)?",
    re.IGNORECASE,
)
_SOA_NUMBERS = re.compile(r"[\s0-9smhdw]*(?:(?P<end>\))\s*)?(?:;.*)?", re.IGNORECASE)
# 32.7.113.0.203.rpz-ip: an address of the answer, and so on
_RPZ_TRIGGER = re.compile(r"(?:^|\.)rpz-[a-z-]+$")
_EXCEPTION = re.compile(r"@@|(?:server|local)=/\S+/[^/\s]")

# Most lines, as they are: a name in its one spelling, of two labels at least and no
# address. Whatever else there is goes through `patterns`, and so do these after a line
# that changes their meaning.
_NAME = r"(?:[a-z0-9_-]{1,63}\.(?![ \t]))++(?!local|rpz-)[a-z][a-z0-9-]{0,62}"
_OCTET = r"(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_PLAIN_OWNER = re.compile(rf"(?:\*\.)?{_NAME}")
_PLAIN_LINE = re.compile(
    rf"(?:(?:0\.0\.0\.0|127\.0\.0\.1)[ \t]+({_NAME})"
    rf"|((?:\*\*\.|\*\.|\.)?{_NAME})(\.?[ \t]+(?:[0-9]+[ \t]+)?(?:IN[ \t]+)?CNAME[ \t]+\.)?"
    rf"|\|\|({_NAME})\^"
    rf"|address=/({_NAME})/(?:{_OCTET}(?:\.{_OCTET}){{3}}|::1?|#)?"
    rf"|(?:server|local)=/({_NAME})/)\r?"
)
# its groups
_HOSTS, _PATTERN, _RECORD_END, _ADBLOCK_TREE, _ADDRESS_TREE, _SERVER_TREE = range(1, 7)
_ALL_PLAIN = frozenset(
    {_HOSTS, _PATTERN, _RECORD_END, _ADBLOCK_TREE, _ADDRESS_TREE, _SERVER_TREE}
)
_ADBLOCK_PLAIN = frozenset({_ADBLOCK_TREE})
_NONE_PLAIN: frozenset[int] = frozenset()
_PLAIN_LENGTH = 253  # of a name; longer lines go through `patterns`
_LINE_LENGTH = 1 << 14
_NO_LINE = "\n"
