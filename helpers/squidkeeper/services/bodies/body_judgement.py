"""What becomes of a request once its body is judged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from squidkeeper.policy.language.model import BY_BODY, POLICY_UNAVAILABLE
from squidkeeper.services.bodies.denials import QUOTA

if TYPE_CHECKING:
    from squidkeeper.policy.engine import CompiledPolicy, Decision
    from squidkeeper.policy.language.model import Rule
    from squidkeeper.services.bodies.body_question import AskedBody

# bytes of a body. A thread judges a longer one, so that others do not wait
JUDGED_AT_ONCE: Final = 64 * 1024
_FOUND_LENGTH: Final = 200  # characters


@dataclass(frozen=True, slots=True)
class Judgement:
    """A decision by the body.

    `answer` is that to a denied request: the head of the response, and its body.

    `meter` is the rule with `meter` that allows. Its reserve is taken before the
    request passes; `metered` is then what Squid keeps of it.
    """

    decision: Decision
    observed: str | None = None
    answer: tuple[bytes, bytes] | None = None
    meter: tuple[CompiledPolicy, Rule] | None = None
    metered: str = ""

    @property
    def allowed(self) -> bool:
        """Whether the request may pass."""
        return self.decision.allowed

    @property
    def size(self) -> int:
        """The bytes of the answer."""
        return sum(map(len, self.answer or ()))

    @property
    def headers(self) -> dict[str, str]:
        """What Squid notes for the access log: `-` for what is absent.

        Each header takes it some microseconds.
        """
        decision = self.decision
        by = "" if decision.rule in (QUOTA, POLICY_UNAVAILABLE) else BY_BODY
        found = f"{by}{decision.found}"[:_FOUND_LENGTH] if decision.found else ""
        told = {
            "X-SK-Rule": decision.rule,
            "X-SK-Verdict": str(decision.action),
            "X-SK-Observed": self.observed or "",
            "X-SK-Found": found,
            "X-SK-Metered": self.metered,
        }
        return {name: _header_value(value) for name, value in told.items() if value}


def is_encoded(asked: AskedBody) -> bool:
    """Whether a body has to be decoded, after which it may be large."""
    return asked.sent.values("content-encoding") not in ([], ["identity"])


def _header_value(text: str) -> str:
    """Write a text as UTF-8, on one line; the names of rules have such texts."""
    if text.isascii() and text.isprintable():
        return text
    return (
        "".join(character for character in text if character.isprintable())
        .encode()
        .decode("latin-1")
    )
