"""Clients, ports, methods, paths, queries and times in words. An empty tuple stands for all."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from datetime import datetime

from squidkeeper.change.difference.dimensions import ClientKind, Ports
from squidkeeper.change.difference.naming import Texts, Traits, named
from squidkeeper.change.difference.url_cells import QueryAtom
from squidkeeper.policy.language.exact_urls import ExactUrl
from squidkeeper.policy.url import DEFAULT_PORTS


def path_texts(paths: frozenset[Hashable], known: frozenset[Hashable]) -> Texts:
    """Write paths: by patterns of the policies, or exact ones."""
    exact = [one.text for one in paths if isinstance(one, ExactUrl)]
    if exact:
        return tuple(sorted(exact))
    return named(_traits(paths, str), _traits(known, str), "every one", "every one except {}")


def query_texts(queries: frozenset[Hashable], known: frozenset[Hashable]) -> Texts:
    """Write queries, by patterns of the policies."""
    return named(_traits(queries, _query), _traits(known, _query), "every one", "every one except {}")


def _traits(sets: Iterable[Hashable], write: Callable[[object], str]) -> list[Traits]:
    return [frozenset(map(write, one)) for one in sets if isinstance(one, frozenset)]


def _query(atom: object) -> str:
    if not isinstance(atom, QueryAtom):
        return str(atom)
    return f"?{atom.key}={atom.pattern}" if atom.one else f"?{atom.key}={atom.pattern} (every value)"


def client_texts(clients: frozenset[Hashable], known: Sequence[ClientKind]) -> Texts:
    """Write clients, by their names in the policies."""
    chosen = [_client(one) for one in known if one in clients]
    return named(chosen, map(_client, known), "any client", "any client except {}")


def _client(kind: ClientKind) -> Traits:
    before, after = (set(names) for names in kind.names)
    sides = zip(("before", "after"), kind.names, kind.refused, strict=True)
    return frozenset(
        [
            *(before & after),
            *(f"{name} (before)" for name in before - after),
            *(f"{name} (after)" for name in after - before),
            *(f"user {kind.user} ({side})" for side, names, refused in sides if refused and not names),
        ]
    )


def method_texts(methods: frozenset[Hashable], known: Sequence[str]) -> Texts:
    """Write methods; those in another case than upper only where that makes a difference."""
    if methods >= set(known):
        return ()
    upper = [one for one in known if one.isupper()]
    others = next(iter(known[len(upper) - 1 : len(upper)]), "")  # it stands for those that no entry names
    chosen = [str(one) for one in sorted(map(str, methods)) if one.isupper() or one.upper() not in methods]
    if others not in methods:
        return tuple(chosen)
    missing = [one for one in known if one not in methods and (one.isupper() or one.upper() in methods)]
    return (f"every method except {', '.join(missing)}",)


def port_texts(ports: frozenset[Hashable], known: Sequence[Ports]) -> Texts:
    """Write schemes and ports."""
    if ports >= set(known):
        return ()
    found: list[str] = []
    for scheme in ("https", "http"):
        of_scheme = [one for one in known if one.scheme == scheme]
        chosen = [one for one in of_scheme if one in ports]
        if chosen == of_scheme:
            found.append(f"{scheme} on every port")
        else:
            found += _spans(scheme, chosen)
    return tuple(found)


def _spans(scheme: str, chosen: Sequence[Ports]) -> list[str]:
    joined: list[tuple[int, int]] = []
    for one in chosen:
        if joined and joined[-1][1] + 1 == one.first and DEFAULT_PORTS[scheme] not in (one.first, joined[-1][1]):
            joined[-1] = (joined[-1][0], one.last)
        else:
            joined.append((one.first, one.last))
    return [_span(scheme, *span) for span in joined]


def _span(scheme: str, first: int, last: int) -> str:
    if first == last == DEFAULT_PORTS[scheme]:
        return scheme
    return f"{scheme}:{first}" if first == last else f"{scheme}:{first}-{last}"


def time_texts(moments: frozenset[Hashable], known: Sequence[datetime], holding: Sequence[Traits]) -> Texts:
    """Write times: by the moments at which something ends, or with schedules by the rules that hold."""
    if len(moments) == len(known):
        return ()
    if holding:
        chosen = [one for number, one in enumerate(holding) if number in moments]
        texts = named(chosen, holding, "any rule with a time holds,", "none of {}")
        return tuple(f"while {text} {'hold' if ' and ' in text else 'holds'}" for text in texts)
    found, number = [], 0
    while number < len(known):
        last = number
        if number in moments:
            while last + 1 in moments:
                last += 1
            found.append(_period(number, last, known))
        number = last + 1
    return tuple(found)


def _period(first: int, last: int, known: Sequence[datetime]) -> str:
    start = "" if first == 0 else f"from {_time(known[first])} on"
    end = "" if last + 1 == len(known) else f"until {_time(known[last + 1])}"
    return " ".join(filter(None, (start.removesuffix(" on") if end else start, end)))


def _time(at: datetime) -> str:
    return at.isoformat().replace("+00:00", "Z")
