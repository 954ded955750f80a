"""`observe: true`: what cannot stand beside it, because a rule that observes decides nothing."""

from collections.abc import Iterable, Iterator

from squidkeeper.base.faults import Fault, FaultCode
from squidkeeper.policy.language.document import Document, entries
from squidkeeper.policy.language.model import Action

_NOT_BESIDE = {
    "private": "it opens no private address",
    "strip": "it removes no header",
    "headers": "it removes no header",
    "tls": "it passes no tunnel through",
    "websocket": "it passes no WebSocket",
    "connections": "it uses no connection",
}


def entry_faults(documents: Iterable[Document]) -> Iterator[Fault]:
    """Find what cannot stand beside `observe: true`, in a rule and in `defaults`."""
    for document in documents:
        for _, entry, steps in entries(document, "rules"):
            for key in _NOT_BESIDE.keys() & entry.keys() if entry.get("observe") is True else ():
                message = f"{key!r} beside observe: true: a rule that observes decides nothing, so {_NOT_BESIDE[key]};"
                remedy = f"remove {key!r} until the rule decides"
                yield Fault(document.locate((*steps, key), key=True), FaultCode.OBSERVE_CONFLICT, f"{message} {remedy}")
        defaults = document.data.get("defaults")
        if not isinstance(defaults, dict) or defaults.get("observe") is not True:
            continue
        if defaults.get("ask") is True:
            message = "ask: true beside observe: true, which allows what would be asked about; expected one of them"
            place = document.locate(("defaults", "ask"), key=True)
            yield Fault(place, FaultCode.OBSERVE_CONFLICT, message)
        if defaults.get("action") == Action.ALLOW:
            message = (
                "observe: true beside action: allow, which denies nothing that could be observed; expected action: deny"
            )
            place = document.locate(("defaults", "observe"), key=True)
            yield Fault(place, FaultCode.OBSERVE_CONFLICT, f"{message} (or 'action' left out)")
