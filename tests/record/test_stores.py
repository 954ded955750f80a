"""The copy of an archive in an object store, over TLS: written once, never replaced,
verified and read.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result

from squidkeeper.base.errors import ObjectTooLarge, StoreFailed, UnreadableLog
from squidkeeper.cli import main
from squidkeeper.record.archive_status import read_archive_status
from squidkeeper.record.chain import stores
from squidkeeper.record.chain.chain import (
    CHAIN,
    HEAD,
    append_entry,
    read_chain,
    seal_head,
)
from squidkeeper.record.chain.entries import ArchivedSource, ChainEntry, EntryKind
from squidkeeper.record.chain.keys import ArchiveKey
from squidkeeper.record.chain.places import FolderPlace
from squidkeeper.record.chain.store_settings import (
    StoreKeys,
    StoreSettings,
    is_store,
    read_store_settings,
    revealed,
)
from squidkeeper.record.chain.stores import (
    Copied,
    ObjectStore,
    copy_archive,
    fetched_archive,
)
from squidkeeper.record.chain.verification import verify
from squidkeeper.record.table.sources import TableSources
from squidkeeper.record.table.table import open_table
from tests.archives import add_source, make_archive, write_parquet, write_part
from tests.records import record_line
from tests.s3_server import KEYS, Application, S3Server, s3_server
from tests.waiting import pause

pytestmark = pytest.mark.system

KEY = ArchiveKey.new()
NUMBERS = count(1)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        server.files.mkdir("bucket")
        yield server


@pytest.fixture
def settings(server: S3Server) -> StoreSettings:
    return server.settings("bucket", f"gateway-{next(NUMBERS)}")


@pytest.fixture
def store(settings: StoreSettings) -> ObjectStore:
    return ObjectStore(settings)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    make_archive(tmp_path / "archive", KEY)
    return tmp_path / "archive"


def test_a_store_that_drips_ends_in_time(
    tmp_path: Path, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drips: list[bool] = []

    def around(inner: Application) -> Application:
        def answer(environment: dict[str, Any], start: Any) -> Any:
            whole = inner(environment, start)
            return (byte for part in whole for byte in slowly(part)) if drips else whole

        return answer

    def slowly(part: bytes) -> Iterator[bytes]:
        for at in range(len(part)):
            pause(0.05, "a store that drips")
            yield part[at : at + 1]

    with s3_server(tmp_path / "server", around) as server:
        server.files.mkdir("drips")
        store = ObjectStore(server.settings("drips", "gateway"))
        copy_archive(archive, store)
        monkeypatch.setattr(stores, "_TIMEOUT_SECONDS", 0.5)
        drips.append(True)
        begun = time.monotonic()
        with pytest.raises(StoreFailed):
            store.read(CHAIN)
        with pytest.raises(StoreFailed):
            list(store.part_paths())
        assert time.monotonic() - begun < 8
        drips.clear()


def faults(store: ObjectStore) -> list[tuple[str, str]]:
    return [
        (str(fault.code), fault.place) for fault in verify(store, [KEY.public]).faults
    ]


def test_a_copy_verifies_and_only_what_is_new_is_copied(
    store: ObjectStore, archive: Path
) -> None:
    assert copy_archive(archive, store) == Copied(6, 3)
    assert store.read(CHAIN) == (archive / CHAIN).read_bytes()
    assert store.read(HEAD) == (archive / HEAD).read_bytes()
    assert faults(store) == []
    seal_head(archive, KEY)  # at another time
    assert copy_archive(archive, store) == Copied(0, 0)
    add_source(archive, KEY, 4)
    assert copy_archive(archive, store) == Copied(2, 1)
    result = verify(store, [KEY.public])
    assert (result.faults, len(result.entries), result.parts) == ((), 4, 8)


def test_what_is_changed_or_missing_in_a_store_is_found(
    store: ObjectStore, archive: Path, server: S3Server, settings: StoreSettings
) -> None:
    copy_archive(archive, store)
    one, two = list(read_chain(archive).parts)[:2]
    server.files.pipe_file(f"{settings.root}/{one}", b"c" * 80)
    server.files.rm_file(f"{settings.root}/{two}")
    assert faults(store) == [("part-changed", one), ("part-missing", two)]
    server.files.rm_file(f"{settings.root}/chain/000000000002.json")
    assert ("numbers-missing", CHAIN) in faults(store)


def test_a_copy_that_was_interrupted_is_no_fault(
    store: ObjectStore, archive: Path
) -> None:
    copy_archive(archive, store)
    part = add_source(archive, KEY, 5).parts[0]
    store.add_part(part, archive)
    result = verify(store, [KEY.public])
    assert (result.faults, result.notes) == (
        (),
        (f"{part.path}: of a run that is under way, or was interrupted",),
    )


def test_an_object_is_never_replaced(
    store: ObjectStore, archive: Path, server: S3Server, settings: StoreSettings
) -> None:
    part = next(iter(read_chain(archive).parts.values()))
    server.files.pipe_file(f"{settings.root}/{part.path}", b"other")
    with pytest.raises(
        StoreFailed, match=r"part-00000001.parquet has other content than the archive"
    ):
        copy_archive(archive, store)
    assert server.files.cat_file(f"{settings.root}/{part.path}") == b"other"
    store.add("a", b"one")
    store.add("a", b"one")
    with pytest.raises(StoreFailed, match="/a has other content"):
        store.add("a", b"two")


def test_an_old_archive_that_was_put_back_is_not_copied(
    store: ObjectStore, archive: Path, tmp_path: Path
) -> None:
    shutil.copytree(archive, tmp_path / "old")
    add_source(archive, KEY, 4)
    copy_archive(archive, store)
    shutil.rmtree(archive)
    shutil.copytree(tmp_path / "old", archive)
    with pytest.raises(
        StoreFailed, match=r"chain/000000000004.json has other content than the archive"
    ):
        copy_archive(archive, store)
    # as the gateway archives on: at another time, so it is another entry
    add_source(archive, KEY, 4)
    with pytest.raises(
        StoreFailed, match=r"chain/000000000004.json has other content than the archive"
    ):
        copy_archive(archive, store)


def test_a_part_that_was_changed_is_not_copied(
    store: ObjectStore, archive: Path
) -> None:
    part = next(iter(read_chain(archive).parts))
    (archive / part).write_bytes(b"changed")
    with pytest.raises(StoreFailed, match="is not as its entry says"):
        copy_archive(archive, store)
    assert store.sizes() == {}


def test_a_period_is_fetched_for_readers_and_days_that_retention_removed_here_too(
    store: ObjectStore, archive: Path, tmp_path: Path
) -> None:
    copy_archive(archive, store)
    entries = read_chain(archive).entries
    append_entry(
        archive,
        ChainEntry(kind=EntryKind.TOMBSTONE, parts=entries[0].parts, reason="older"),
        KEY,
    )
    for part in entries[0].parts:
        (archive / part.path).unlink()
    copy_archive(archive, store)
    with fetched_archive(store, tmp_path) as folder:
        parts = read_chain(folder).parts
        assert len(parts) == 6
        assert {len((folder / path).read_bytes()) for path in parts} == {80}
        sources = [
            {entry.source for entry in read_chain(place).entries if entry.source}
            for place in (folder, archive)
        ]
        assert sources[0] == sources[1]
    assert not folder.exists()


def test_a_part_that_is_not_as_its_entry_says_is_not_fetched(
    store: ObjectStore,
    archive: Path,
    server: S3Server,
    settings: StoreSettings,
    tmp_path: Path,
) -> None:
    copy_archive(archive, store)
    part = next(iter(read_chain(archive).parts))
    server.files.pipe_file(f"{settings.root}/{part}", b"changed")
    with fetched_archive(store, tmp_path) as folder:
        assert [
            path for path in read_chain(folder).parts if not (folder / path).exists()
        ] == [part]


def test_an_object_that_is_longer_than_its_entry_says_is_not_fetched_to_its_end(
    store: ObjectStore, server: S3Server, settings: StoreSettings, tmp_path: Path
) -> None:
    """Nor is it right to whoever verifies: the gateway's key has signed the entry."""
    (archive := tmp_path / "archive").mkdir()
    part = write_part(archive, 1, "2026-11-25", b"0" * 1000)
    append_entry(
        archive, ChainEntry(kind=EntryKind.PARTS, parts=(replace(part, bytes=10),)), KEY
    )
    [lying] = read_chain(archive).parts.values()
    store.add("chain/000000000001.json", (archive / CHAIN).read_bytes())
    store.add("heads/000000000001.json", (archive / HEAD).read_bytes())
    server.files.pipe_file(f"{settings.root}/{part.path}", b"0" * 1000)
    with store.open(lying) as file:
        assert len(file.read()) == 11
    with fetched_archive(store, tmp_path) as folder:
        assert [path for path in folder.rglob("*") if path.is_file()] == [
            folder / CHAIN
        ]
    for place in (store, FolderPlace(archive)):
        [fault] = verify(place, [KEY.public]).faults
        assert (fault.code, fault.text) == (
            "part-changed",
            "it was changed: more than its 10 bytes",
        )


def test_a_chain_or_a_head_that_is_too_large_is_not_read(
    store: ObjectStore, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_archive(archive, store)
    monkeypatch.setattr("squidkeeper.record.chain.stores._READ_AT_MOST", 400)
    with pytest.raises(
        ObjectTooLarge, match=r"/chain is too large to be read: expected 400 B at most"
    ):
        store.read(CHAIN)
    assert ("line-damaged", CHAIN) in faults(store), (
        "it keeps nothing else from being verified"
    )
    store.add("heads/000000000009.json", b"0" * 401)
    with pytest.raises(
        ObjectTooLarge, match=r"/heads/000000000009.json is too large to be read"
    ):
        store.read(HEAD)


@pytest.mark.long
def test_objects_are_listed_by_pages_and_not_without_end(
    store: ObjectStore,
    server: S3Server,
    settings: StoreSettings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server.files.pipe({f"{settings.root}/a/{number:04}": b"" for number in range(1100)})
    assert len(store.sizes()) == 1100
    monkeypatch.setattr("squidkeeper.record.chain.stores._OBJECTS_AT_MOST", 1099)
    with pytest.raises(
        ObjectTooLarge, match=r"/gateway-\d+ has more than 1,099 objects"
    ):
        store.sizes()
    assert ("part-unknown", str(store)) in faults(store), (
        "it keeps nothing else from being verified"
    )


def test_a_part_that_the_disk_has_no_room_for_is_not_fetched_to_be_verified(
    store: ObjectStore, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_archive(archive, store)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=100))
    found = verify(store, [KEY.public]).faults
    assert [str(fault.code) for fault in found] == ["part-missing"] * 6
    assert "one archive takes at most half of what the disk has free" in found[0].text


def test_a_server_whose_certificate_no_ca_covers_is_refused(
    settings: StoreSettings, archive: Path
) -> None:
    with pytest.raises(StoreFailed, match="CERTIFICATE_VERIFY_FAILED") as caught:
        copy_archive(archive, ObjectStore(replace(settings, ca_file="")))
    assert KEYS.secret_access_key not in str(caught.value)


def test_a_store_that_does_not_answer_or_has_no_such_bucket_is_a_failure(
    settings: StoreSettings, archive: Path
) -> None:
    with pytest.raises(StoreFailed, match="s3://no-such-bucket/gateway-1: "):
        copy_archive(
            archive, ObjectStore(replace(settings, url="s3://no-such-bucket/gateway-1"))
        )


def test_the_table_reads_a_period_from_a_store(
    settings: StoreSettings, store: ObjectStore, tmp_path: Path
) -> None:
    noon = datetime(2026, 11, 25, 12, tzinfo=UTC)
    parts = [
        write_parquet(
            tmp_path,
            day,
            f"2026-11-{24 + day}",
            [((noon + timedelta(day - 1)).timestamp(), f"http://{day}/")],
        )
        for day in (1, 2)
    ]
    source = ArchivedSource(name="log", first_line_sha256="0" * 64, bytes=1, lines=2)
    append_entry(
        tmp_path,
        ChainEntry(kind=EntryKind.PARTS, source=source, parts=tuple(parts)),
        KEY,
    )
    copy_archive(tmp_path, store)
    sources = TableSources(archive=settings)
    assert [urls_of(sources, since) for since in (None, noon + timedelta(hours=1))] == [
        ["http://1/", "http://2/"],
        ["http://2/"],
    ]
    with pytest.raises(UnreadableLog, match="s3://no-such-bucket"):
        urls_of(
            TableSources(archive=replace(settings, url="s3://no-such-bucket")), None
        )


def test_a_query_of_roots_reads_a_store_as_nobody(
    settings: StoreSettings, tmp_path: Path
) -> None:
    part = write_parquet(
        tmp_path,
        1,
        "2026-11-25",
        [(datetime(2026, 11, 25, tzinfo=UTC).timestamp(), "http://1/")],
    )
    source = ArchivedSource(name="log", first_line_sha256="0" * 64, bytes=1, lines=1)
    append_entry(
        tmp_path, ChainEntry(kind=EntryKind.PARTS, source=source, parts=(part,)), KEY
    )
    copy_archive(tmp_path, ObjectStore(settings))
    file = write(tmp_path, msgspec.yaml.encode(settings).decode(), 0o600)
    (log := tmp_path / "access.log").touch()  # in place of this machine's own
    sql = "SELECT url FROM records"
    command = [
        sys.executable,
        "-m",
        "squidkeeper",
        "query",
        sql,
        str(log),
        "--archive",
        str(file),
        "--format",
        "csv",
    ]
    with tempfile.TemporaryDirectory() as folder:  # pytest's own is root's alone
        Path(folder).chmod(0o1777)
        environment = os.environ | {"TMPDIR": folder}
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env=environment
        )
        assert os.listdir(folder) == []
    assert (done.stdout, done.stderr, done.returncode) == ("url\nhttp://1/\n", "", 0)


def run_archive(folder: Path, *options: str) -> Result:
    """Archive one rotated log by the command."""
    log = folder / "access.log.1"
    log.write_bytes(
        record_line(time="2026-11-20T10:00:00.000Z", url="http://a.example/") + b"\n"
    )
    os.utime(log, (0, 0))
    (folder / "archive.key").write_bytes(KEY.pem)
    (folder / "archive").mkdir()
    arguments = [
        "--access-log",
        folder / "access.log",
        "--archive",
        folder / "archive",
        "--key",
        folder / "archive.key",
    ]
    return CliRunner().invoke(main, ["archive", "run", *map(str, arguments), *options])


def test_a_run_of_the_archive_copies_what_is_new(
    settings: StoreSettings, store: ObjectStore, tmp_path: Path
) -> None:
    file = write(tmp_path, msgspec.yaml.encode(settings).decode(), 0o600)
    ran = run_archive(tmp_path, "--copy-to", file)
    assert ran.exit_code == 0, ran.output
    assert "copied 1 part\n" in ran.output
    assert faults(store) == []
    assert urls_of(TableSources(archive=settings), None) == ["http://a.example/"]
    shown = CliRunner().invoke(
        main, ["log", "--archive", file, "--json", "--host", "a.example"]
    )
    assert (shown.exit_code, json.loads(shown.stdout)["url"]) == (
        0,
        "http://a.example/",
    )


def test_a_copy_that_fails_is_reported_and_the_archive_goes_on(
    settings: StoreSettings, tmp_path: Path
) -> None:
    text = msgspec.yaml.encode(replace(settings, url="s3://no-such-bucket/x")).decode()
    ran = run_archive(tmp_path, "--copy-to", write(tmp_path, text, 0o600))
    assert ran.exit_code == 1
    assert "not copied: s3://no-such-bucket/x: " in ran.output
    assert KEYS.secret_access_key not in ran.output
    assert len(read_chain(tmp_path / "archive").parts) == 1
    status = read_archive_status(tmp_path / "archive")
    assert status is not None
    assert status.failure.startswith("the copy: s3://no-such-bucket/x: ")


def test_without_the_file_of_a_store_there_is_no_copy(tmp_path: Path) -> None:
    ran = run_archive(tmp_path, "--copy-to", str(tmp_path / "archive-store.yaml"))
    assert ran.exit_code == 0, ran.output
    assert f"archive head {seal_head(tmp_path / 'archive', KEY)}\n" in ran.output


def urls_of(sources: TableSources, since: datetime | None) -> list[str]:
    with open_table(sources, since, threads=1, columns=["url"]) as table:
        return [
            url
            for (url,) in table.connection.execute(
                "SELECT url FROM records ORDER BY time"
            ).fetchall()
        ]


def write(folder: Path, text: str, mode: int = 0o640) -> str:
    file = folder / "store.yaml"
    file.write_text(text)
    file.chmod(mode)
    return str(file)


def test_the_file_of_a_store_is_read(tmp_path: Path) -> None:
    text = "url: s3://bucket/a/b\nendpoint: https://s3.example\nkeys: {access_key_id: A, secret_access_key: B}\n"
    settings = read_store_settings(write(tmp_path, text))
    keys = StoreKeys(access_key_id="A", secret_access_key="B")
    assert settings == StoreSettings(
        url="s3://bucket/a/b", endpoint="https://s3.example", keys=keys
    )
    assert (settings.root, "B" in repr(settings)) == ("bucket/a/b", False)
    assert read_store_settings("s3://bucket").root == "bucket"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("url: s3://bucket/..\n", "is not the URL of a store"),
        ("url: https://bucket/\n", "is not the URL of a store"),
        ("url: s3://bucket/x\nendpoint: http://s3.example\n", "is not https://"),
        ("url: s3://bucket/x\nverify: false\n", "unknown field `verify`"),
        ("endpoint: https://s3.example\n", "missing required field `url`"),
        ("url: [\n", "expected url, and where needed"),
    ],
)
def test_a_file_that_describes_no_store_is_refused(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(StoreFailed, match=message):
        read_store_settings(write(tmp_path, text))


def test_a_file_with_keys_that_everybody_can_read_is_refused(tmp_path: Path) -> None:
    text = "url: s3://bucket/a\nkeys: {access_key_id: A, secret_access_key: B}\n"
    with pytest.raises(StoreFailed, match="everybody can read it: chmod 0640"):
        read_store_settings(write(tmp_path, text, 0o644))


def test_keys_are_read_from_the_secrets_of_a_policy(tmp_path: Path) -> None:
    policy = tmp_path / "policy"
    policy.mkdir()
    for name in ("id", "key"):
        (tmp_path / name).write_text(f"value-of-{name}\n")
        (tmp_path / name).chmod(0o640)
    secrets = "".join(
        f"  {name}: {{file: {tmp_path / name}}}\n" for name in ("id", "key")
    )
    (policy / "policy.yaml").write_text(
        f"version: 1\nrules: [{{name: a, action: allow, hosts: [a.example]}}]\nsecrets:\n{secrets}"
    )
    names = StoreKeys(access_key_id="id", secret_access_key="key", policy=str(policy))
    assert revealed(names) == StoreKeys(
        access_key_id="value-of-id", secret_access_key="value-of-key"
    )
    with pytest.raises(StoreFailed, match="has no 'other'"):
        revealed(replace(names, secret_access_key="other"))


def test_the_command_verifies_a_store_and_an_archive_by_the_head_in_its_store(
    settings: StoreSettings, store: ObjectStore, archive: Path, tmp_path: Path
) -> None:
    public, file = tmp_path / "archive.pub", tmp_path / "store.yaml"
    public.write_bytes(KEY.public.pem)
    file.write_bytes(msgspec.yaml.encode(settings))
    file.chmod(0o600)
    shutil.copytree(archive, tmp_path / "old")
    add_source(archive, KEY, 4)
    copy_archive(archive, store)
    verified = CliRunner().invoke(
        main, ["archive", "verify", str(file), "--key", str(public)]
    )
    assert verified.exit_code == 0, verified.output
    assert f"archive {store}: 4 entries, 8 parts" in verified.output
    old = CliRunner().invoke(
        main,
        [
            "archive",
            "verify",
            str(tmp_path / "old"),
            "--key",
            str(public),
            "--head",
            str(file),
        ],
    )
    assert old.exit_code == 1
    assert (
        "it ends at entry 3, and a head of number 4 was kept: an old archive was put back"
        in old.output
    )


def test_a_store_is_told_apart_from_a_folder() -> None:
    assert [
        is_store(text)
        for text in ("s3://bucket/a", "/etc/store.yaml", "/var/lib/archive")
    ] == [True, True, False]
