"""gateway.yaml on disk: what options of install.sh change in it, and what of it is in
force.
"""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from squidkeeper.base.errors import SetupFailed
from squidkeeper.base.faults import FaultCode
from squidkeeper.base.layout import Layout
from squidkeeper.operate.setup.entries import text_at
from squidkeeper.operate.setup.gateway_settings import (
    AUTO,
    DIRECT,
    GatewaySettings,
    check_settings,
)
from squidkeeper.operate.setup.options import NO_EXPORTER
from squidkeeper.policy.language.document import Document, parse_document

NONE: Final = "none"
_LONGEST_LINE: Final = 100_000
_FIRST: Final = b"""\
# The settings of this gateway, as squid/INSTALL.md describes them. After an edit run
# `./install.sh --dry-run`, then `./install.sh`. Its options change this file.
version: 1
"""


@dataclass(frozen=True, slots=True)
class _Option:
    """An option of install.sh: the keys that lead to its setting, and the word that
    ends the setting.
    """

    steps: tuple[str, ...]
    is_list: bool = False
    is_text: bool = False  # also if it is a number
    ends: str = ""

    def setting(self, given: str) -> object:
        """Return the value as the file has it; None where the setting ends."""
        if given == self.ends:
            return None
        if self.is_list:
            return [part for part in given.split(",") if part]
        is_number = given.isascii() and given.isdecimal() and not self.is_text
        return int(given) if is_number else given


_OPTIONS: Final[Mapping[str, _Option]] = {
    "gateway": _Option(("gateway",), is_text=True),
    "listen": _Option(("listen",)),
    "workers": _Option(("workers",)),
    "tls_name": _Option(("tls", "names"), is_list=True),
    "behind": _Option(("behind", "addresses"), is_list=True, ends=NONE),
    "health_listen": _Option(("behind", "health_listen")),
    "transparent": _Option(("transparent",), is_list=True, ends=NONE),
    "upstream": _Option(("upstream",), ends=NONE),
    "bump": _Option(("bump",)),
    "certificates": _Option(("certificates",)),
    "ca": _Option(("ca",)),
    "intermediate_days": _Option(("intermediate_days",), ends=AUTO),
    "exporter_listen": _Option(("exporter", "listen")),
    "status_from": _Option(("exporter", "status_from"), is_list=True, ends=NONE),
    "log_bytes": _Option(("log", "bytes"), ends=AUTO),
    "archive_days": _Option(("archive", "days"), ends=AUTO),
    "archive_bytes": _Option(("archive", "bytes"), ends=AUTO),
}


# what an option changes, and cannot begin
_NEEDS: Final = {
    "tls_name": (
        "--tls-name is for the certificate of the TLS port, which is off",
        "add --tls",
    ),
    "health_listen": (
        "--health-listen is for load balancers, and there is none",
        "add --behind ADDRESS",
    ),
}


def option_fault(name: str, given: str) -> str:
    """Say what is wrong with the value of an option; empty: nothing."""
    data: dict[str, Any] = {"version": 1}
    _change(data, name, given)
    checked = check_settings(Path("gateway.yaml"), _written(data).encode())
    others = (FaultCode.MISSING_KEY, FaultCode.KEY_CHOICE)  # of settings beside it
    found = (fault for fault in checked.faults if fault.code not in others)
    return next((fault.message for fault in found), "")


def changed_text(file: Path, before: bytes, given: Mapping[str, str]) -> str:
    """Return the text of a file with what options change in it.

    `given` has the values by the names of the options; of a switch, any value.
    Comments outside of what changes stay.
    """
    document = parse_document(file, before or _FIRST)
    data = deepcopy(document.data)
    for name, value in given.items():
        if name in _NEEDS and _OPTIONS[name].steps[0] not in data:
            raise SetupFailed(*_NEEDS[name])
        _change(data, name, value)
    return _edited(document, data)


def _change(data: dict[str, Any], name: str, given: str) -> None:
    match name:
        case "no_exporter":
            data["exporter"] = {"listen": NO_EXPORTER}
        case "tls":
            data.setdefault("tls", {"names": AUTO})
        case "no_tls":
            data.pop("tls", None)
        case _:
            option = _OPTIONS[name]
            if (value := option.setting(given)) is None:
                _remove(data, option.steps)
            else:
                _put(data, option.steps, value)
    if name == "ca" and given == DIRECT:
        data.pop("intermediate_days", None)
    if name == "behind" and given == NONE:
        data.pop("behind", None)


def _put(data: dict[str, Any], steps: tuple[str, ...], value: object) -> None:
    for step in steps[:-1]:
        inner = data.get(step)
        data = data.setdefault(step, {}) if isinstance(inner, dict | None) else {}
    data[steps[-1]] = value


def _remove(data: dict[str, Any], steps: tuple[str, ...]) -> None:
    inner = data.get(steps[0])
    if steps[1:] and isinstance(inner, dict):
        _remove(inner, steps[1:])
    if not steps[1:] or inner == {}:
        data.pop(steps[0], None)


def _edited(document: Document, data: Mapping[str, Any]) -> str:
    """Replace the lines of the keys that differ; of a file that is not written so, all
    lines.
    """
    if data == document.data:
        return document.content.decode()
    lines = document.content.decode().splitlines(keepends=True)
    blocks = dict(_blocks(document, lines))
    for key in sorted(blocks, key=lambda name: blocks[name].start, reverse=True):
        if key not in data:
            del lines[blocks[key].start : blocks[key].stop]
        elif data[key] != document.data[key]:
            lines[blocks[key].start : blocks[key].stop] = [_written({key: data[key]})]
    text = "".join(lines)
    text += "\n" * bool(text and not text.endswith("\n"))
    text += _written({key: data[key] for key in data if key not in document.data})
    edited = parse_document(document.path, text.encode())
    return text if edited.data == data and not edited.faults else _written(data)


def _blocks(document: Document, lines: list[str]) -> Iterator[tuple[str, range]]:
    """Yield the lines of each key, without the comments above the next one."""
    starts = [
        (document.locate((key,), key=True).line - 1, key) for key in document.data
    ]
    ends = [line for line, _ in starts[1:]] + [len(lines)]
    for (start, key), end in zip(starts, ends, strict=True):
        stop = end
        while stop > start + 1 and lines[stop - 1].strip()[:1] in ("", "#"):
            stop -= 1
        yield key, range(start, stop)


def _written(data: Mapping[str, Any]) -> str:
    return "".join(f"{key}: {_value(value)}\n" for key, value in data.items())


def _value(value: object) -> str:
    """Write a value in one line, a scalar with quotes only where it needs them."""
    is_scalar = not isinstance(value, dict | list)
    written = yaml.safe_dump(
        value if is_scalar else [value],
        default_flow_style=not is_scalar,
        sort_keys=False,
        width=_LONGEST_LINE,
    )
    line: str = written.splitlines()[0]
    return line if is_scalar else line[1:-1]


def read_settings(file: Path, content: bytes) -> GatewaySettings:
    """Read the settings of a file; `SetupFailed` has all faults."""
    checked = check_settings(file, content)
    if checked.settings is None:
        faults = "".join(f"{fault}\n" for fault in checked.faults)
        raise SetupFailed(
            f"{file} is faulty, and nothing was changed",
            "fix each line above, or leave out the option that it comes from",
            details=faults,
        )
    return checked.settings


def settings_in_force(layout: Layout) -> GatewaySettings:
    """Return the settings that the last run of install.sh has applied; the defaults
    where there are none.
    """
    text = text_at(layout.settings_in_force)
    found = check_settings(layout.settings_in_force, text.encode()).settings
    return found or GatewaySettings(version=1)


def differences(
    former: GatewaySettings, settings: GatewaySettings
) -> Iterator[tuple[str, str]]:
    """Yield the settings that differ: the keys, and both values."""
    before, after = former.model_dump(), settings.model_dump()
    for key in before:
        if before[key] != after[key]:
            yield key, f"{_shown(before[key])} -> {_shown(after[key])}"


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return (
            ", ".join(f"{key} {_shown(inner)}" for key, inner in value.items() if inner)
            or "default"
        )
    if isinstance(value, list | tuple):
        return " ".join(map(str, value)) or NONE
    return "default" if value is None else str(value)
