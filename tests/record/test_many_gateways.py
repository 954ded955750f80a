"""The archives of many gateways in one store: each adds below its own prefix, and all
are read as one table.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
from click import Context
from click.testing import CliRunner, Result

from squidkeeper.base.errors import StoreFailed
from squidkeeper.base.squid_account import Account
from squidkeeper.cli import main
from squidkeeper.record.archive.archiver import Archiver
from squidkeeper.record.archive.retention import ArchiveBounds
from squidkeeper.record.chain import stores as stores_module
from squidkeeper.record.chain.chain import CHAIN, append_entry
from squidkeeper.record.chain.entries import ChainEntry, EntryKind
from squidkeeper.record.chain.keys import ArchiveKey
from squidkeeper.record.chain.places import archives_in, gateway_of
from squidkeeper.record.chain.store_settings import StoreKeys, StoreSettings
from squidkeeper.record.chain.stores import ObjectStore, copy_archive
from squidkeeper.record.table.sources import TableSources
from squidkeeper.record.table.table import open_table
from tests.archives import write_part
from tests.iam import Gate
from tests.records import after_noon, record_line
from tests.s3_server import S3Server, s3_server

REPOSITORY = Path(__file__).parents[2]
NAMES = ("gw-1", "gw-2", "gw-3")
KEYS = {name: ArchiveKey.new() for name in NAMES}


def request_id(name: str) -> str:
    """As Squid makes it: it begins with the gateway and the time of the request."""
    return f"{name}.{datetime.fromisoformat(after_noon(0)).timestamp():.0f}.880.73.{name[-1]}"


def lines(name: str) -> list[bytes]:
    """On each gateway the same client has the same connection: a denied CONNECT, and
    half a second later the request.

    Those of gw-2 begin between the two of gw-1. gw-3 says that it is gw-1.
    """
    start = {"gw-1": 0, "gw-2": 0.2, "gw-3": 3600}[name]
    said = {"gw-3": "gw-1"}.get(name, name)
    same = {
        "client": "10.0.0.1",
        "connection": "7",
        "worker": "1",
        "gateway": said,
        "verdict": "deny",
        "rule": name,
    }
    connect = {
        "method": "CONNECT",
        "url": "a.com:443",
        "status": 200,
        "error": "ERR_ACCESS_DENIED",
    }
    inside = {
        "method": "GET",
        "url": "https://a.com/",
        "status": 403,
        "tunnel": "a.com:443",
    }
    return [
        record_line(
            time=after_noon(start),
            squid="TCP_DENIED/HIER_NONE",
            tunnel="a.com:443",
            **connect,
            **same,
        ),
        record_line(
            time=after_noon(start + 0.5),
            request_id=request_id(name),
            error="ERR_ACCESS_DENIED",
            **inside,
            **same,
        ),
        record_line(
            time=after_noon(start + 1),
            client="10.0.0.2",
            gateway=said,
            url=f"https://{name}.com/",
            bytes=5,
        ),
    ]


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sealed archives of three gateways."""
    folder = tmp_path_factory.mktemp("archives")
    for name in NAMES:
        log = tmp_path_factory.mktemp(name) / "access.log"
        rotated = log.with_name("access.log.1")
        rotated.write_bytes(b"".join(line + b"\n" for line in lines(name)))
        os.utime(rotated, (time.time() - 600,) * 2)
        (folder / f"gateway={name}").mkdir()
        Archiver(
            log, folder / f"gateway={name}", KEYS[name], ArchiveBounds(36_500)
        ).run()
    return folder


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    folder = tmp_path / "keys"
    folder.mkdir()
    for name, key in KEYS.items():
        (folder / f"{name}.pub").write_bytes(key.public.pem)
    return folder


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def asked(archive: Path | StoreSettings, sql: str) -> list[tuple[object, ...]]:
    with open_table(TableSources(archive=archive)) as table:
        return table.connection.execute(sql).fetchall()


# ── One table ─────────────────────────────────────────────────────────────────────────


def test_connections_are_told_apart_by_gateway(archives: Path) -> None:
    """Else the CONNECT of gw-1 would have the request of gw-2 behind it, and be no row
    of its own.
    """
    rows = asked(
        archives,
        "SELECT gateway, method, duration_ms > 0, rule FROM requests ORDER BY time, position",
    )
    assert sorted((str(gateway), str(method)) for gateway, method, _, _ in rows) == [
        (name, "GET") for name in NAMES for _ in (1, 2)
    ]
    alone = [
        asked(folder, "SELECT count(*) FROM requests")[0][0]
        for folder in archives_in(archives)
    ]
    assert len(rows) == sum(int(str(count)) for count in alone)


def test_the_gateway_is_the_one_in_whose_archive_a_record_is_whatever_it_says(
    archives: Path,
) -> None:
    sql = "SELECT DISTINCT gateway FROM records WHERE url LIKE '%gw-3%'"
    assert asked(archives, sql) == asked(archives / "gateway=gw-3", sql) == [("gw-3",)]


def test_a_report_of_all_has_the_sum_of_each(archives: Path) -> None:
    def totals(folder: Path) -> list[int]:
        sql = "SELECT count(*), count(*) FILTER (verdict = 'deny'), sum(bytes) FROM requests"
        return [int(str(value)) for value in asked(folder, sql)[0]]

    each = [totals(folder) for folder in archives_in(archives)]
    assert totals(archives) == [sum(values) for values in zip(*each, strict=True)]


@pytest.mark.long
def test_the_documented_commands_read_a_mirror(
    archives: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = (REPOSITORY / "squid/FLEET.md").read_text()
    [block] = re.findall(r"```\nsquidkeeper archive fetch .*\n((?:.+\n)+)```", document)
    text = block.replace("/srv/fleet", str(archives)).replace(
        "gw-1.1795577866.783.12.51872", request_id("gw-1")
    )
    monkeypatch.chdir(tmp_path)
    for line in text.splitlines():
        _, *words = shlex.split(line, comments=True)
        done = run(*words)
        # which tells of a request that failed
        assert done.exit_code == (words[0] == "why"), done.output
    assert (tmp_path / "fleet.html").exists()


@pytest.mark.parametrize("name", NAMES)
def test_why_finds_a_request_whichever_gateway_served_it(
    archives: Path, name: str, tmp_path: Path
) -> None:
    policy = tmp_path / "policy"
    policy.mkdir()
    (policy / "policy.yaml").write_text("version: 1\n")
    done = run(
        "why",
        request_id(name),
        "--archive",
        archives,
        "--policy",
        policy,
        "--state",
        tmp_path,
        "--json",
    )
    told = json.loads(done.output)
    (cause,) = told["causes"]
    assert told["cache_log_problem"] is None  # an archive alone is read
    assert (cause["sentence"], cause["newest"][0]["gateway"]) == (
        f"The rule {name} denies it.",
        name,
    )


def test_the_log_is_filtered_and_counted_by_gateway(
    archives: Path, tmp_path: Path
) -> None:
    (log := tmp_path / "access.log").touch()  # in place of this machine's own
    about = ("--archive", archives, "--state", tmp_path, log)
    shown = run("log", "--gateway", "gw-2", "--json", *about)
    assert {json.loads(line)["gateway"] for line in shown.output.splitlines()} == {
        "gw-2"
    }
    counted = run("log", "--by", "gateway", *about).output
    assert [counted.count(name) for name in NAMES] == [1, 1, 1]


READERS = ("log", "why", "report", "query", "replay", "learn", "tighten")


@pytest.mark.parametrize("name", READERS)
def test_every_command_that_reads_the_table_can_read_one_gateway(name: str) -> None:
    command = main.get_command(Context(main), name)
    assert command is not None
    options = {option for parameter in command.params for option in parameter.opts}
    assert {"--archive", "--gateway"} <= options


def test_of_a_gateway_its_own_rows_alone_are_read(
    archives: Path, tmp_path: Path
) -> None:
    """Also beside a log of another gateway, and past an archive that cannot be read."""
    copy, log = shutil.copytree(archives, tmp_path / "copy"), tmp_path / "access.log"
    log.write_bytes(b"".join(line + b"\n" for line in lines("gw-1")))
    [part] = (copy / "gateway=gw-3").rglob("*.parquet")
    part.write_bytes(b"damaged")
    with open_table(TableSources((log,), archive=copy, gateways=("gw-2",))) as table:
        assert table.connection.execute(
            "SELECT DISTINCT gateway FROM requests"
        ).fetchall() == [("gw-2",)]
        assert table.skipped.damaged == []
    counted = run(
        "log",
        "--by",
        "gateway",
        "--gateway",
        "gw-2",
        "--archive",
        copy,
        "--state",
        tmp_path,
        log,
    )
    assert (counted.exit_code, counted.output.count("gw-")) == (0, 1), counted.output

    def requests(*options: object) -> int:
        done = run("report", "--json", "--policy", tmp_path, *options)
        return int(json.loads(done.stdout)["summary"]["requests"])

    both = requests("--archive", archives, "--gateway", "gw-1", "--gateway", "gw-2")
    assert both == 2 * requests("--archive", archives / "gateway=gw-1")


def test_why_names_the_gateway_of_each_request_where_there_are_several(
    archives: Path, tmp_path: Path
) -> None:
    places = (
        "--archive",
        archives,
        "--state",
        tmp_path,
        "--policy",
        tmp_path,
        "--since",
        after_noon(-60),
    )
    several = run("why", *places).output
    assert [several.count(f"  {name}  10.0.0.1  403  GET ") for name in NAMES] == [
        1,
        1,
        1,
    ]
    alone = run("why", "--gateway", "gw-2", *places).output
    assert "  10.0.0.1  403  GET " in alone
    assert not any(name in alone for name in ("gw-1", "gw-2  ", "gw-3"))


def test_a_folder_without_gateways_is_one_archive_and_links_are_not_followed(
    archives: Path, tmp_path: Path
) -> None:
    (tmp_path / "gateway=..").mkdir()
    (tmp_path / "gateway=gw-9").symlink_to(archives / "gateway=gw-1")
    assert archives_in(tmp_path) == (tmp_path,)
    assert [
        gateway_of(name)
        for name in ("gateway=a'b", "gateway=-", "gateway=", "day=2026-11-26")
    ] == [""] * 4


# ── Verify ────────────────────────────────────────────────────────────────────────────


def test_each_archive_is_verified_by_its_own_key(archives: Path, keys: Path) -> None:
    done = run("archive", "verify", "--key", keys, archives)
    assert (
        done.exit_code,
        done.output.count("OK: everything is as it was signed"),
    ) == (0, 3), done.output
    assert [
        f"archive {archives}/gateway={name}: 1 entry, 1 part" in done.output
        for name in NAMES
    ] == [True] * 3
    refused = run("archive", "verify", "--key", keys / "gw-1.pub", archives)
    assert (
        refused.exit_code,
        "has archives of many gateways: --key DIR" in refused.output,
    ) == (1, True)


def test_the_archive_of_one_gateway_in_the_place_of_another_is_found(
    archives: Path, keys: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(archives, tmp_path / "copy")
    shutil.rmtree(copy / "gateway=gw-2")
    shutil.rmtree(copy / "gateway=gw-3")
    shutil.copytree(copy / "gateway=gw-1", copy / "gateway=gw-2")
    done = run("archive", "verify", "--key", keys, "--json", copy)
    found = {
        one["archive"].rpartition("/")[2]: {fault["code"] for fault in one["faults"]}
        for one in json.loads(done.output)
    }
    assert found["gateway=gw-1"] == set()
    assert "other-key" in found["gateway=gw-2"]
    assert found["gateway=gw-3"] == {"archive-missing"}
    assert done.exit_code == 1


# ── One object store ──────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def gate() -> Gate:
    """Each gateway has the documented policy, with its own name."""
    text = (REPOSITORY / "squid/FLEET.md").read_text()
    found = re.search(
        r"```json\n(.*?)```", text.split("## One view of all")[1], re.DOTALL
    )
    assert found is not None
    return Gate(
        {f"AKIA-{name}": json.loads(found[1].replace("gw-1", name)) for name in NAMES}
    )


@pytest.fixture(scope="module")
def server(gate: Gate, tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3"), gate.around) as server:
        server.files.mkdir("audit-logs")
        yield server


def store_of(server: S3Server, name: str, of: str = "") -> ObjectStore:
    """The prefix of a gateway, by the keys of this one or another."""
    keys = StoreKeys(access_key_id=f"AKIA-{of or name}", secret_access_key="secret")
    return ObjectStore(server.settings("audit-logs", f"fleet/gateway={name}", keys))


@pytest.fixture(scope="module")
def fleet(server: S3Server, archives: Path) -> StoreSettings:
    """The store after each gateway has copied its archive, as whoever reads
    all has it.
    """
    for name in NAMES:
        copy_archive(archives / f"gateway={name}", store_of(server, name))
    return server.settings("audit-logs", "fleet")


@pytest.mark.system
def test_a_copy_needs_no_more_than_the_documented_policy(
    fleet: StoreSettings, server: S3Server, archives: Path, gate: Gate
) -> None:
    gate.refused.clear()
    again = copy_archive(archives / "gateway=gw-1", store_of(server, "gw-1"))
    assert (again.parts, again.entries, gate.refused) == (0, 0, [])


@pytest.mark.system
def test_a_gateway_cannot_read_list_add_replace_or_delete_what_is_anothers_or_there(
    fleet: StoreSettings, server: S3Server
) -> None:
    """Nor replace or delete what is its own."""
    others = store_of(server, "gw-2", of="gw-1")
    for action in (
        lambda: others.read_object("chain/000000000001.json"),
        lambda: others.sizes(),
        lambda: others.add("chain/000000000009.json", b"forged"),
        lambda: (
            store_of(server, "gw-1")
            .archives()[0]
            ._files.rm_file("audit-logs/fleet/gateway=gw-1/chain/000000000001.json")
        ),
        lambda: store_of(server, "gw-1")._files.pipe_file(
            "audit-logs/fleet/gateway=gw-1/chain/000000000001.json", b"x"
        ),
    ):
        with pytest.raises((StoreFailed, PermissionError)):
            action()
    names = {
        path.rpartition("/gateway=")[2]
        for path in server.files.find("audit-logs/fleet")
        if "/chain/" in path
    }
    assert names == {f"{name}/chain/000000000001.json" for name in NAMES}


@pytest.mark.long
def test_the_store_of_all_is_read_as_one_table(
    fleet: StoreSettings, archives: Path
) -> None:
    sql = "SELECT gateway, count(*) FROM requests GROUP BY gateway ORDER BY gateway"
    assert asked(fleet, sql) == asked(archives, sql)


def settings_file(fleet: StoreSettings, folder: Path) -> Path:
    file = folder / "store.yaml"
    file.write_bytes(msgspec.yaml.encode(fleet))
    file.chmod(0o600)
    return file


@pytest.mark.system
def test_a_mirror_is_fetched_once_and_verifies(
    fleet: StoreSettings, archives: Path, keys: Path, tmp_path: Path
) -> None:
    store, mirror = settings_file(fleet, tmp_path), tmp_path / "mirror"
    first = run("archive", "fetch", store, mirror)
    assert [line.partition(",")[0] for line in first.output.splitlines()] == [
        f"{name}: fetched 1 part" for name in NAMES
    ]
    again = run("archive", "fetch", store, mirror)
    assert [line.partition(",")[0] for line in again.output.splitlines()] == [
        f"{name}: fetched 0 parts" for name in NAMES
    ]
    assert (first.exit_code, again.exit_code) == (0, 0)
    verified = run("archive", "verify", "--key", keys, "--head", store, mirror)
    assert (verified.exit_code, verified.output.count("OK: ")) == (0, 3), (
        verified.output
    )
    sql = "SELECT * FROM requests ORDER BY ALL"
    assert asked(mirror, sql) == asked(archives, sql)


@pytest.mark.system
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_what_root_fetches_has_the_group_of_its_mirror(
    fleet: StoreSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At first Squid's group, as which root queries."""
    store, mirror = settings_file(fleet, tmp_path), tmp_path / "mirror"

    def groups() -> set[int]:
        [folder] = mirror.glob("gateway=gw-1")
        return {path.stat().st_gid for path in (folder, *folder.rglob("*"))}

    monkeypatch.setattr(
        stores_module, "squid_account", lambda: Account("squid", 4321, 4321)
    )
    assert run("archive", "fetch", store, mirror).exit_code == 0
    assert groups() == {4321}
    for path in (
        mirror,
        *mirror.rglob("*"),
    ):  # as a mirror that an operator has given to another group
        os.chown(path, -1, 4322)
        path.chmod(0o750 if path.is_dir() else 0o640)
    [part] = mirror.glob("gateway=gw-1/day=*/*")
    part.unlink()
    assert run("archive", "fetch", store, mirror).exit_code == 0
    assert part.exists()
    assert groups() == {4322}


@pytest.mark.long
def test_a_mirror_begins_where_it_was_told_to(
    fleet: StoreSettings, keys: Path, tmp_path: Path
) -> None:
    store, mirror = settings_file(fleet, tmp_path), tmp_path / "mirror"
    assert (
        run("archive", "fetch", store, mirror, "--since", after_noon(1800)).exit_code
        == 0
    )
    with open_table(TableSources(archive=mirror)) as table:
        assert table.connection.execute(
            "SELECT DISTINCT gateway FROM records"
        ).fetchall() == [("gw-3",)]
        assert [text.partition(": ")[2][:16] for text in table.skipped.damaged] == [
            "parts of before "
        ] * 2
    with open_table(
        TableSources(archive=mirror), since=datetime.fromisoformat(after_noon(1800))
    ) as table:
        assert table.skipped.damaged == []
    verified = run(
        "archive", "verify", "--key", keys, "--since", after_noon(1800), mirror
    )
    assert (
        verified.exit_code,
        verified.output.count("1 of its parts are of before --since"),
    ) == (0, 2), verified.output
    whole = run("archive", "verify", "--key", keys, mirror)
    assert (whole.exit_code, whole.output.count("part-missing")) == (1, 2), (
        "nothing in the mirror hides a missing part"
    )


@pytest.mark.long
def test_one_archive_that_is_damaged_keeps_no_other_from_the_mirror(
    fleet: StoreSettings, server: S3Server, archives: Path, tmp_path: Path
) -> None:
    for name in ("gw-1", "gw-2"):
        copy_archive(
            archives / f"gateway={name}",
            ObjectStore(server.settings("audit-logs", f"other/gateway={name}")),
        )
    server.files.pipe_file(
        "audit-logs/other/gateway=gw-1/chain/000000000001.json", b"no entry\n"
    )
    part = next(
        path
        for path in server.files.find("audit-logs/other/gateway=gw-2")
        if path.endswith(".parquet")
    )
    server.files.pipe_file(part, b"PAR1")
    other = settings_file(replace(fleet, url="s3://audit-logs/other"), tmp_path)
    done = run("archive", "fetch", other, tmp_path / "mirror")
    assert "gw-1: not fetched: " in done.output
    assert "gw-2: fetched 0 parts" in done.output
    assert "the store lacks it, or has other content than its entry says" in done.output
    assert done.exit_code == 1


@pytest.mark.system
def test_an_archive_that_would_fill_the_disk_keeps_no_other_from_the_mirror(
    server: S3Server, archives: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever sizes its entries state, and however often more is added to it."""
    mirror, gw_1 = tmp_path / "mirror", tmp_path / "gw-1"
    store = settings_file(server.settings("audit-logs", "full"), tmp_path)
    gw_1.mkdir()

    def free(folder: Path) -> SimpleNamespace:
        used = sum(path.stat().st_size for path in mirror.rglob("*.parquet"))
        return SimpleNamespace(free=1_000_000 - used)

    def fetch() -> list[str]:
        return run("archive", "fetch", store, mirror).output.splitlines()

    def fetch_after(number: int) -> list[str]:
        """The gateway adds 200,000 bytes."""
        part = write_part(gw_1, number, "2026-11-25", str(number).encode() * 200_000)
        append_entry(gw_1, ChainEntry(kind=EntryKind.PARTS, parts=(part,)))
        copy_archive(
            gw_1, ObjectStore(server.settings("audit-logs", "full/gateway=gw-1"))
        )
        return fetch()

    copy_archive(
        archives / "gateway=gw-2",
        ObjectStore(server.settings("audit-logs", "full/gateway=gw-2")),
    )
    monkeypatch.setattr("shutil.disk_usage", free)
    first, second, third = (fetch_after(number) for number in (1, 2, 3))
    assert [line[:21] for line in (first[0], second[0])] == [
        "gw-1: fetched 1 part,"
    ] * 2
    assert first[1].startswith("gw-2: fetched 1 part, ")
    [said] = [line for line in third if "not fetched" in line]
    assert said.startswith(
        "gw-1: not fetched: s3://audit-logs/full/gateway=gw-1: 200 KB are to be fetched. "
    )
    assert "gw-2: fetched 0 parts, 0 B" in third
    shutil.rmtree(mirror / "gateway=gw-1")
    (mirror / "gateway=gw-1").touch()
    assert {line[:24] for line in fetch()} >= {
        "gw-1: not fetched: [Errn",
        "gw-2: fetched 0 parts, 0",
    }


@pytest.mark.long
def test_a_mirror_of_another_chain_is_refused(
    fleet: StoreSettings, tmp_path: Path
) -> None:
    store, mirror = settings_file(fleet, tmp_path), tmp_path / "mirror"
    run("archive", "fetch", store, mirror)
    file = mirror / "gateway=gw-1" / CHAIN
    file.write_bytes(file.read_bytes().replace(b"access.log.1", b"access.log.2"))
    done = run("archive", "fetch", store, mirror)
    assert (done.exit_code, "has another chain than the mirror" in done.output) == (
        1,
        True,
    ), done.output


@pytest.mark.long
def test_a_prefix_without_an_archive_is_refused(
    fleet: StoreSettings, tmp_path: Path
) -> None:
    nothing = settings_file(replace(fleet, url="s3://audit-logs/nothing"), tmp_path)
    done = run("archive", "fetch", nothing, tmp_path / "mirror")
    assert (done.exit_code, "audit-logs/nothing" in done.output) == (1, True), (
        done.output
    )
