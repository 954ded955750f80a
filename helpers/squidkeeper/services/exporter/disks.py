"""The free space of the disks that the gateway writes to."""

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_LOW_RATIO: Final = 0.1
_FULL_BYTES: Final = 1e6
_LOW_BYTES: Final = 10e9  # a tenth of a large disk is plenty


@dataclass(frozen=True, slots=True)
class Disk:
    """The file system of a folder. `folder` is `log`, `state` or `archive`; `available_bytes`: for Squid's account."""

    folder: str
    path: Path
    available_bytes: int
    size_bytes: int

    @property
    def is_low(self) -> bool:
        """Whether the free space is low. The alert SquidkeeperDiskSpaceLow has the same bounds."""
        return self.available_bytes < min(_LOW_RATIO * self.size_bytes, _LOW_BYTES)

    @property
    def is_full(self) -> bool:
        """Whether Squid cannot write to it any more, although it has to. The archive can wait."""
        return self.folder != "archive" and self.available_bytes < _FULL_BYTES


def read_disks(folders: Mapping[str, Path]) -> Iterator[Disk]:
    """Read the free space of each folder; leave out a folder that does not exist."""
    for name, path in folders.items():
        try:
            usage = shutil.disk_usage(path)
        except OSError:
            continue
        yield Disk(name, path, usage.free, usage.total)
