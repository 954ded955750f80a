"""Which presets allow what was used."""

from collections.abc import Iterable

from squidkeeper.change.learning.uses import Use
from squidkeeper.policy.engine import CompiledPolicy, decide
from squidkeeper.policy.language.hosts import HostForm
from squidkeeper.policy.policy_store.loading import load_preset
from squidkeeper.policy.presets import preset_names
from squidkeeper.policy.protocol.request import CONNECT, request_to


class PresetCover:
    """The newest version of each preset, by the hosts that it names."""

    def __init__(self, names: Iterable[str]) -> None:
        self._by_host: dict[str, list[tuple[str, CompiledPolicy]]] = {}
        for name in sorted(names):
            preset = load_preset(name)
            patterns = (pattern for rule in preset.source.rules for pattern in rule.match.hosts or ())
            for host in {pattern.name for pattern in patterns if pattern.form is HostForm.EXACT}:
                self._by_host.setdefault(host, []).append((name, preset))

    @property
    def hosts(self) -> frozenset[str]:
        """The hosts that presets name."""
        return frozenset(self._by_host)

    def covering(self, use: Use) -> tuple[str, ...]:
        """Name the presets that allow a use."""
        presets = self._by_host.get(use.host, ())
        if not presets or use.method == CONNECT:
            return ()
        request = request_to(use.method, use.url)
        return tuple(name for name, preset in presets if decide(preset, preset.match(request), use.last).allowed)


def newest_presets() -> list[str]:
    """Name the newest version of each preset."""
    newest: dict[str, int] = {}
    for name in preset_names():
        stem, _, version = name.rpartition("@")
        newest[stem] = max(int(version), newest.get(stem, 0))
    return [f"{stem}@{version}" for stem, version in newest.items()]
