"""Squid's configuration as Squid reads it: `parseOneConfigFile` of its cache_cf.cc.

A line that ends in a backslash continues; comments and empty lines within do not end
it. Then macros are replaced, and `if`, `else`, `endif` and `include` count. Of nested
conditions Squid regards the innermost alone.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from glob import glob
from pathlib import Path
from typing import Final

_DEEPEST: Final = 16
_SPACE: Final = " \t\n\v\f\r"
_STRING: Final = r'"(?:\\.|[^"\\])*"'
_WORD = re.compile(rf'[^\s"]*{_STRING}\S*|\S+', re.ASCII)
_QUOTED_WORD = re.compile(rf"{_STRING}|'(?:\\.|[^'\\])*'|\S+", re.ASCII)
_INCLUDED = re.compile(rf"{_STRING}|(?:\\.|[^\s\"\\])+", re.ASCII)
_SPACES = re.compile(r"\s+", re.ASCII)  # Squid splits at ASCII's spaces alone
_CUT = re.compile(r"[\r\0]")  # Squid ends a line at either, whatever follows
_ESCAPED = re.compile(r"\\(.)")
_CONTROL: Final = frozenset({"if", "else", "endif", "include"})
# Former names that Squid 6 still takes.
_NAMES: Final = {
    "ascii_port": "http_port",
    "cache_access_log": "access_log",
    "http_access2": "adapted_http_access",
    "max_filedesc": "max_filedescriptors",
    "no_cache": "cache",
    "redirect_children": "url_rewrite_children",
    "redirect_program": "url_rewrite_program",
    "redirector_access": "url_rewrite_access",
    "redirector_bypass": "url_rewrite_bypass",
    "storeurl_rewrite_access": "store_id_access",
    "storeurl_rewrite_bypass": "store_id_bypass",
    "storeurl_rewrite_children": "store_id_children",
    "storeurl_rewrite_program": "store_id_program",
}


@dataclass(frozen=True, slots=True)
class Directive:
    """One line of the configuration, its continuation lines joined; `line` is the first
    one's number.

    `in_force` is false below an `if` that does not hold. `rest` is what follows the
    name.
    """

    file: Path
    line: int
    text: str
    in_force: bool = True
    quoted_values: bool = False  # by configuration_includes_quoted_values

    @property
    def place(self) -> str:
        """Where it is, as FILE:LINE."""
        return f"{self.file}:{self.line}"

    @property
    def name(self) -> str:
        """Its name; one of today, where it is a former name."""
        return _NAMES.get(self.written_name, self.written_name)

    @property
    def written_name(self) -> str:
        """Its name as it stands in the file."""
        return _SPACES.split(self.text, maxsplit=1)[0]

    @property
    def rest(self) -> str:
        """What follows its name."""
        return "".join(_SPACES.split(self.text, maxsplit=1)[1:])

    @property
    def first(self) -> str:
        """The first word that follows its name; empty where there is none."""
        return next(iter(self.words), "")

    @property
    def words(self) -> tuple[str, ...]:
        """What follows its name, word by word, up to a comment.

        Quotes around a word are removed.
        """
        return tuple(
            _without_quotes(word)
            for word in _before_comment(self._words.findall(self.rest))
        )

    @property
    def number(self) -> int | None:
        """The number that follows its name, if one does."""
        return (
            int(self.first) if self.first.isascii() and self.first.isdigit() else None
        )

    @property
    def is_on(self) -> bool:
        """Whether it switches on what it is for."""
        return self.first in ("on", "enable")

    @property
    def _words(self) -> re.Pattern[str]:
        return _QUOTED_WORD if self.quoted_values else _WORD


@dataclass(frozen=True, slots=True)
class Macros:
    """What Squid's macros stand for, in the process that serves."""

    service_name: str = "squid"
    process_name: str = "squid-1"
    process_number: int = 1

    def replace(self, text: str) -> str:
        """Replace the macros of a line."""
        for name in ("service_name", "process_name", "process_number"):
            text = text.replace(f"${{{name}}}", str(getattr(self, name)))
        return text


@dataclass(frozen=True, slots=True)
class Problem:
    """A place that Squid does not accept, or, with `denied`, that this process may not
    read.
    """

    place: str
    text: str
    denied: bool = False


@dataclass(slots=True)
class SquidConf:
    """Everything that was read: each line that Squid processes, in its order, and what
    kept lines from being read.
    """

    lines: list[Directive] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    @property
    def directives(self) -> tuple[Directive, ...]:
        """The directives in force, in Squid's order."""
        return tuple(
            line for line in self.lines if line.in_force and line.name not in _CONTROL
        )


def _itself(path: Path) -> Path:
    return path


def read_squid_conf(
    path: Path, macros: Macros, shown: Callable[[Path], Path] = _itself
) -> SquidConf:
    """Read a squid.conf and all that it includes; `shown` gives the path that a file is
    named by.

    OSError where that file cannot be read; other faults are problems.
    """
    return _Reader(macros, _text_of(path), shown).read(path)


class _Reader:
    def __init__(
        self, macros: Macros, text: str, shown: Callable[[Path], Path]
    ) -> None:
        self._macros = macros
        self._shown = shown
        self._text = text
        self._conf = SquidConf()
        self._quoted_values = False

    def read(self, path: Path) -> SquidConf:
        self._read_file(path, self._text, depth=0)
        return self._conf

    def _read_file(self, path: Path, text: str, depth: int) -> None:
        self._conf.files.append(path)
        conditions: list[bool] = []
        for number, line in _logical_lines(text):
            directive = self._directive(
                path, number, line, in_force=not conditions or conditions[-1]
            )
            self._conf.lines.append(directive)
            if directive.written_name in ("if", "else", "endif"):
                self._apply_condition(directive, conditions)
            elif directive.in_force:
                self._apply(directive, depth)
        if conditions:
            self._complain(str(path), "an 'if' has no 'endif'")

    def _directive(
        self, path: Path, number: int, text: str, *, in_force: bool
    ) -> Directive:
        return Directive(
            path, number, self._macros.replace(text), in_force, self._quoted_values
        )

    def _apply_condition(self, directive: Directive, conditions: list[bool]) -> None:
        if directive.name == "if":
            conditions.append(self._holds(directive))
        elif not conditions:
            self._complain(directive.place, f"'{directive.name}' without an 'if'")
        elif directive.name == "else":
            conditions[-1] = not conditions[-1]
        else:
            conditions.pop()

    def _holds(self, directive: Directive) -> bool:
        expression = directive.rest.strip(_SPACE)
        left, equals, right = expression.partition("=")
        try:
            return (
                int(left, 0) == int(right, 0)
                if equals
                else {"true": True, "false": False}[expression]
            )
        except (KeyError, ValueError):
            self._complain(
                directive.place, f"'{expression}' is not true, false or NUMBER = NUMBER"
            )
            return False

    def _apply(self, directive: Directive, depth: int) -> None:
        if directive.name == "include":
            for included in _INCLUDED.findall(directive.rest):
                self._include(
                    directive, _ESCAPED.sub(r"\1", included.strip('"')), depth + 1
                )
        elif directive.name == "configuration_includes_quoted_values":
            self._quoted_values = directive.is_on

    def _include(self, directive: Directive, pattern: str, depth: int) -> None:
        found = sorted(glob(pattern, root_dir="/", include_hidden=False))
        what = self._shown(Path(pattern))
        if not found:
            self._complain(
                directive.place, f"includes {what}, and there is no such file"
            )
        elif depth > _DEEPEST:
            self._complain(
                directive.place,
                f"includes {what} more than {_DEEPEST} levels deep, which Squid ignores",
            )
        for name in found if depth <= _DEEPEST else ():
            path = Path("/", name)
            try:
                text = _text_of(path)
            except OSError as error:
                text = f"includes {self._shown(path)}, which cannot be read ({error.strerror})"
                self._complain(
                    directive.place, text, denied=isinstance(error, PermissionError)
                )
            else:
                self._read_file(self._shown(path), text, depth)

    def _complain(self, place: str, text: str, *, denied: bool = False) -> None:
        self._conf.problems.append(Problem(place, text, denied))


def _text_of(path: Path) -> str:
    # `read_text` takes a lone \\r for the end of a line
    return path.read_bytes().decode(errors="backslashreplace")


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield each line that Squid processes, with its first line's number.

    One that never ends is never processed.
    """
    joined, first = "", 0
    for number, physical in enumerate(text.split("\n"), 1):
        line = _CUT.split(physical, maxsplit=1)[0].lstrip(_SPACE)
        if not line or line.startswith("#"):
            continue
        first = first if joined else number
        joined += line
        if joined.endswith("\\"):
            joined = joined[:-1]
            continue
        yield first, joined.rstrip(_SPACE)
        joined = ""


def _before_comment(words: list[str]) -> Iterator[str]:
    for word in words:
        if word.startswith("#"):
            return
        yield word


def _without_quotes(word: str) -> str:
    quote = word[:1]
    if quote in "\"'" and len(word) > 1 and word.endswith(quote):
        return _ESCAPED.sub(r"\1", word[1:-1])
    return word
