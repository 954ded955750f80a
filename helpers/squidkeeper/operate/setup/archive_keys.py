"""The key that seals the archive: made once, kept by every later run, and read by the archive alone."""

from collections.abc import Mapping
from pathlib import Path

from squidkeeper.base.errors import InvalidArchiveKey, SetupFailed
from squidkeeper.base.layout import Layout
from squidkeeper.operate.setup.entries import Entry, File, Owner, read_entry
from squidkeeper.record.chain.keys import ArchiveKey


def archive_keys(layout: Layout, owner: Owner) -> Mapping[Path, Entry]:
    """Give the key in place, or a new one, and the public one; `SetupFailed` if the one in place is none.

    The public file keeps what is ahead: keys that were replaced, which verify what they have signed.
    """
    found = read_entry(layout.archive_key)
    try:
        key = ArchiveKey.parse(found.content) if isinstance(found, File) else ArchiveKey.new()
    except InvalidArchiveKey as error:
        raise SetupFailed(f"{layout.archive_key}: {error}", "move it away: a new key is made") from None
    before = read_entry(layout.archive_pub)
    public = before.content if isinstance(before, File) else b""
    if key.public.pem not in public:
        public += key.public.pem
    return {layout.archive_key: File(key.pem, 0o600, owner), layout.archive_pub: File(public)}
