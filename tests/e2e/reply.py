"""What a client got: a status, headers and a body; of a denial, the rule and the reason
that its page gives.
"""

import json
import re
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer; NO_ANSWER, which is false, where there was none."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def __bool__(self) -> bool:
        return self.status != 0

    @property
    def text(self) -> str:
        return self.body.decode("utf-8", "replace")

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def header(self, name: str) -> str | None:
        return next(
            (value for key, value in self.headers if key.lower() == name.lower()), None
        )

    @property
    def shown(self) -> str:
        """The text that a page shows: as it is, or in HTML within `xmp`, where nothing
        else is markup.
        """
        found = re.search("<xmp>\n(.*?)</xmp>", self.text, re.DOTALL)
        return found[1] if found else self.text

    def line(self, label: str) -> str | None:
        """The value of a `Label: value` line of a page."""
        found = re.search(rf"^{label}: *(.+)$", self.shown, re.MULTILINE)
        return found[1].strip() if found else None

    @property
    def rule(self) -> str | None:
        return self.line("Rule")

    @property
    def denial(self) -> str | None:
        """What denied: the page's rule; of a page of Squid's own, as where a helper has
        no answer, its error.
        """
        return self.rule or self.line("Error")

    @property
    def reason(self) -> str | None:
        return self.line("Reason")


NO_ANSWER = Reply(0, (), b"")


def parse_head(head: bytes) -> tuple[int, tuple[tuple[str, str], ...]]:
    """Split a response's head into its status and its headers."""
    first, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
    headers = tuple(
        (name, value.strip())
        for name, _, value in (line.partition(":") for line in lines)
    )
    return int(first.split(" ")[1]), headers
