"""The plan of an installation: what is, what should be, and the steps between them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from squidkeeper.base.layout import ACCOUNTS, BODIES, Layout
from squidkeeper.operate.setup.configuration import MARK
from squidkeeper.operate.setup.entries import Entry, File, Folder, Link
from squidkeeper.operate.setup.generations import folder_of, public_links
from squidkeeper.operate.setup.plan import (
    Plan,
    Present,
    SetupStep,
    StepKind,
    Wanted,
    plan,
)

LAYOUT = Layout.of(Path("/srv/gateway"))
EXPORTER, MAINTENANCE, SECRETS, TLS, EXPORT = (
    LAYOUT.service(name)
    for name in ("exporter", "maintenance", "secrets", "tls", "export")
)
CONF = f"{MARK}\nhttp_port 3129 ssl-bump\n"
OWN = b"192.0.2.1/32\n"
PAGES = Folder({"ERR_DENIED": File(b"denied\n"), "README": File(b"not a page\n")})


def generation(
    number: int, conf: str = CONF, fragment: bytes = b"", pages: Folder = PAGES
) -> dict[Path, Entry]:
    """A generation, and the link to it; its files name its folder."""
    folder = folder_of(LAYOUT, number)
    include = f"include {folder}/squidkeeper.conf\n"
    inside: dict[str, Entry] = {
        "squid.conf": File(f"{conf}{include}".encode()),
        "squidkeeper.conf": File(fragment),
        "errors": pages,
        "gateway.yaml": File(b"version: 1\n"),
    }
    return {folder: Folder(inside), LAYOUT.generation: Link(str(number))}


FILES: Mapping[Path, Entry] = {
    **generation(1),
    **public_links(LAYOUT),
    LAYOUT.ca_cert: File(b"root\n"),
    LAYOUT.signing_cert: File(b"certificate\n", owner=(13, 13)),
    LAYOUT.signing_key: File(b"key\n", 0o600, (13, 13)),
    LAYOUT.program: Link("../venv-1/bin/squidkeeper"),
    LAYOUT.supervise: File(b"supervise\n", 0o755),
    MAINTENANCE.unit: File(b"maintenance\n"),
    EXPORTER.unit: File(b"exporter\n"),
    LAYOUT.observe: Folder({"alerts.yaml": File(b"alerts\n")}),
}
FOLDERS = {
    path: Folder({}, 0o750, (13, 13))
    for path in (LAYOUT.access_log.parent, LAYOUT.state, LAYOUT.run)
}
WANTED = Wanted(
    files=FILES,
    folders=FOLDERS,
    listen="3129",
    exporter="127.0.0.1:9129",
    own_addresses=OWN,
)
FRESH = plan(LAYOUT, WANTED, Present())


def noted(action: StepKind, planned: Plan = FRESH) -> str:
    """What a plan notes about a process."""
    (step,) = (step for step in planned.steps if step.action is action)
    assert isinstance(step.entry, File)
    return step.entry.content.decode().rstrip("\n")


TOLD = {
    "maintenance": noted(StepKind.START_MAINTENANCE),
    "exporter": noted(StepKind.START_EXPORTER),
}
HERE = Present(
    files={
        **FILES,
        **FOLDERS,
        LAYOUT.counts: Folder({}),
        LAYOUT.own_addresses: File(OWN, owner=(13, 13)),
    },
    squid_runs=True,
    squid_told=noted(StepKind.START_SQUID),
    services_work=frozenset(TOLD),
    service_told=TOLD,
)


def summary(planned: Plan) -> list[tuple[StepKind, Path]]:
    return [(step.action, step.path) for step in planned.steps]


def with_files(**files: Entry) -> Wanted:
    """What is wanted, with other files by the names of the layout."""
    return replace(
        WANTED,
        files={
            **FILES,
            **{getattr(LAYOUT, name): entry for name, entry in files.items()},
        },
    )


def with_generation(
    conf: str = CONF, fragment: bytes = b"", pages: Folder = PAGES
) -> Wanted:
    """What is wanted, with a second generation."""
    second = generation(2, conf, fragment, pages)
    others = {path: entry for path, entry in FILES.items() if path not in generation(1)}
    return replace(WANTED, files={**second, **others})


SECOND = [
    (StepKind.PUT, folder_of(LAYOUT, 2)),
    (StepKind.PUT, LAYOUT.generation),
]


def here(*missing: Path, **files: Entry) -> Present:
    """What is there, without some files and with others by the names of the layout."""
    found = {
        **HERE.files,
        **{getattr(LAYOUT, name): entry for name, entry in files.items()},
    }
    return replace(
        HERE,
        files={path: entry for path, entry in found.items() if path not in missing},
    )


def test_a_first_run_makes_everything_and_then_starts_it() -> None:
    assert summary(FRESH) == [
        *((StepKind.MAKE, path) for path in FOLDERS),
        *((StepKind.PUT, path) for path in FILES),
        (StepKind.MAKE_AS_SQUID, LAYOUT.counts),
        (StepKind.WRITE_OWN_ADDRESSES, LAYOUT.state),
        (StepKind.START_MAINTENANCE, MAINTENANCE.applied),
        (StepKind.START_SQUID, LAYOUT.applied),
        (StepKind.START_EXPORTER, EXPORTER.applied),
    ]
    assert FRESH.notes == ()


WITH_TLS = replace(
    WANTED,
    files={**FILES, LAYOUT.haproxy: File(b"haproxy\n"), TLS.unit: File(b"tls\n")},
    tls=True,
    certificate=True,
)


def test_haproxy_gets_its_certificate_first_and_starts_once_squid_has_left_the_port() -> (
    None
):
    assert summary(plan(LAYOUT, WITH_TLS, Present()))[-5:] == [
        (StepKind.MAKE_SERVER_CERTIFICATE, LAYOUT.tls),
        (StepKind.START_MAINTENANCE, MAINTENANCE.applied),
        (StepKind.START_SQUID, LAYOUT.applied),
        (StepKind.START_TLS, TLS.applied),
        (StepKind.START_EXPORTER, EXPORTER.applied),
    ]


def test_haproxy_leaves_the_port_before_squid_takes_it_again() -> None:
    gone = (TLS.unit, TLS.applied, LAYOUT.haproxy, LAYOUT.tls)
    there = {
        **HERE.files,
        **dict.fromkeys(gone, File(b"there\n")),
        LAYOUT.conf: File(f"{MARK}\n".encode()),
    }
    planned = summary(
        plan(
            LAYOUT, WANTED, replace(HERE, files=there, squid_told="127.1.1.1:13129 a b")
        )
    )
    assert [step for step in planned if step[0] is not StepKind.PUT] == [
        (StepKind.STOP_SERVICE, TLS.unit),
        *((StepKind.REMOVE, path) for path in gone),
        (StepKind.RESTART_SQUID, LAYOUT.applied),
    ]


def test_ports_for_clients_without_settings_are_started_after_squid_and_taken_back() -> (
    None
):
    shim, dns = (LAYOUT.service(name) for name in ("transparent", "dns"))
    files = {
        **FILES,
        LAYOUT.dns: File(b"dns\n"),
        shim.unit: File(b"shim\n"),
        dns.unit: File(b"unbound\n"),
    }
    made = plan(LAYOUT, replace(WANTED, files=files, transparent=True), Present())
    assert summary(made)[-6:] == [
        (StepKind.WRITE_OWN_ADDRESSES, LAYOUT.state),
        (StepKind.START_MAINTENANCE, MAINTENANCE.applied),
        (StepKind.START_SQUID, LAYOUT.applied),
        (StepKind.START_TRANSPARENT, shim.applied),
        (StepKind.START_DNS, dns.applied),
        (StepKind.START_EXPORTER, EXPORTER.applied),
    ]
    assert (StepKind.MAKE_SHARED, LAYOUT.transparent_state) in summary(made)
    changed = plan(
        LAYOUT,
        replace(
            WANTED, files={**files, LAYOUT.dns: File(b"other\n")}, transparent=True
        ),
        Present(),
    )
    assert noted(StepKind.START_DNS, changed) != noted(StepKind.START_DNS, made)
    assert noted(StepKind.START_TRANSPARENT, changed) == noted(
        StepKind.START_TRANSPARENT, made
    )
    gone = [
        (shim.unit, shim.applied, LAYOUT.transparent_state),
        (dns.unit, dns.applied, LAYOUT.dns),
    ]
    there = {
        **HERE.files,
        **dict.fromkeys((path for paths in gone for path in paths), File(b"there\n")),
    }
    assert summary(plan(LAYOUT, WANTED, replace(HERE, files=there))) == [
        step
        for paths in reversed(gone)
        for step in (
            (StepKind.STOP_SERVICE, paths[0]),
            *((StepKind.REMOVE, path) for path in paths),
        )
    ]


def test_no_proxy_header_is_sent_to_a_squid_that_takes_none() -> None:
    """Squid would record it as a client's request that is no HTTP."""
    plain, behind = (
        {**FILES, **generation(number, f"{CONF}# {end}\n")}
        | {
            service.unit: File(f"ExecStart=squidkeeper{end}\n".encode())
            for service in (MAINTENANCE, EXPORTER)
        }
        for number, end in enumerate(("", " --proxy-header"), 1)
    )
    squid = (StepKind.RECONFIGURE_SQUID, LAYOUT.applied)
    asking = [
        (StepKind.START_MAINTENANCE, MAINTENANCE.applied),
        (StepKind.START_EXPORTER, EXPORTER.applied),
    ]

    def started(
        before: Mapping[Path, Entry], after: Mapping[Path, Entry]
    ) -> list[tuple[StepKind, Path]]:
        present = replace(HERE, files={**HERE.files, **before})
        planned = summary(plan(LAYOUT, replace(WANTED, files=after), present))
        return [step for step in planned if step[0] is not StepKind.PUT]

    assert started(plain, behind) == [squid, *asking]
    assert started(behind, plain) == [*asking, squid]


WITH_SECRETS = replace(
    WANTED, files={**FILES, SECRETS.unit: File(b"secrets\n")}, fetches=True
)


BODY_SERVICES = tuple(LAYOUT.service(name) for name in BODIES)
WITH_BODIES = replace(
    WANTED,
    files={**FILES, **{service.unit: File(b"bodies\n") for service in BODY_SERVICES}},
    bodies=True,
)


WITH_EXPORTS = replace(
    WANTED, files={**FILES, EXPORT.unit: File(b"export\n")}, exports=b"format: json\n"
)


PULL = LAYOUT.service("pull")
WITH_PULL = replace(WANTED, files={**FILES, PULL.unit: File(b"pull\n")}, pulls=True)


def test_the_process_that_fetches_secrets_starts_ahead_of_squid_and_those_that_send_and_pull_last() -> (
    None
):
    starting = (
        StepKind.START_SECRETS,
        StepKind.START_SQUID,
        StepKind.START_EXPORT,
        StepKind.START_PULL,
    )
    for wanted, last in (
        (
            WITH_SECRETS,
            [
                (StepKind.START_SECRETS, SECRETS.applied),
                (StepKind.START_SQUID, LAYOUT.applied),
            ],
        ),
        (
            WITH_EXPORTS,
            [
                (StepKind.START_SQUID, LAYOUT.applied),
                (StepKind.START_EXPORT, EXPORT.applied),
            ],
        ),
        (
            WITH_PULL,
            [
                (StepKind.START_SQUID, LAYOUT.applied),
                (StepKind.START_PULL, PULL.applied),
            ],
        ),
    ):
        assert [
            step
            for step in summary(plan(LAYOUT, wanted, Present()))
            if step[0] in starting
        ] == last
    assert (StepKind.MAKE_SHARED, LAYOUT.export_state) in summary(
        plan(LAYOUT, WITH_EXPORTS, Present())
    )


def test_what_inspects_bodies_starts_ahead_of_squid_one_process_after_the_other() -> (
    None
):
    """So one of them answers while the other starts.

    They go with the last rule that needs them.
    """
    first, second = BODY_SERVICES
    started = [
        (StepKind.START_BODIES_1, first.applied),
        (StepKind.START_BODIES_2, second.applied),
    ]
    fresh = summary(plan(LAYOUT, WITH_BODIES, Present()))
    at = fresh.index(started[0])
    assert fresh[at : at + 3] == [*started, (StepKind.START_SQUID, LAYOUT.applied)]
    assert (StepKind.MAKE_SHARED, LAYOUT.bodies_state) in fresh[:at]
    there = {
        **HERE.files,
        **WITH_BODIES.files,
        LAYOUT.bodies_state: Folder({}),
        LAYOUT.program: Link("../venv-0/x"),
    }
    newer = [
        step
        for step in summary(plan(LAYOUT, WITH_BODIES, replace(HERE, files=there)))
        if step in started
    ]
    assert newer == started
    gone = (first.unit, first.applied, second.unit, second.applied, LAYOUT.bodies_state)
    there = {**HERE.files, **dict.fromkeys(gone, File(b"there\n"))}
    assert summary(plan(LAYOUT, WANTED, replace(HERE, files=there))) == [
        (StepKind.STOP_SERVICE, first.unit),
        *((StepKind.REMOVE, path) for path in gone[:2]),
        (StepKind.STOP_SERVICE, second.unit),
        *((StepKind.REMOVE, path) for path in gone[2:]),
    ]
    metered = summary(
        plan(LAYOUT, WANTED, replace(HERE, files=there, was_metered=True))
    )
    # what was used stays
    assert LAYOUT.bodies_state not in [path for _, path in metered]


@pytest.mark.parametrize(
    ("name", "folders"),
    [("pull", ()), ("export", (LAYOUT.export_state,)), ("secrets", (LAYOUT.secrets,))],
)
def test_a_process_goes_with_the_last_that_needs_it(
    name: str, folders: tuple[Path, ...]
) -> None:
    service = LAYOUT.service(name)
    gone = (service.unit, service.applied, *folders)
    there = {**HERE.files, **dict.fromkeys(gone, File(b"there\n"))}
    assert summary(plan(LAYOUT, WANTED, replace(HERE, files=there))) == [
        (StepKind.STOP_SERVICE, service.unit),
        *((StepKind.REMOVE, path) for path in gone),
    ]


def test_accounts_that_are_missing_are_made_ahead_of_what_needs_them() -> None:
    """Of a file that is there too: one that an older release wrote, or a backup."""
    wanted = with_files(account=File(b"u squidkeeper-bodies\n"))
    lacking = replace(
        here(account=File(b"u squidkeeper-bodies\n")), lacks_accounts=True
    )
    made = (StepKind.MAKE_ACCOUNTS, LAYOUT.account)
    assert summary(plan(LAYOUT, wanted, lacking)) == [made]
    fresh = summary(plan(LAYOUT, wanted, Present(lacks_accounts=True)))
    first = fresh.index((StepKind.START_MAINTENANCE, MAINTENANCE.applied))
    written = fresh.index((StepKind.PUT, LAYOUT.account))
    assert written < fresh.index(made) < first


def test_an_edited_file_of_an_export_restarts_the_process() -> None:
    [started] = [
        step
        for step in plan(LAYOUT, WITH_EXPORTS, Present()).steps
        if step.path == EXPORT.applied
    ]
    assert isinstance(started.entry, File)
    told = {"export": started.entry.content.decode().strip()}
    here = Present(services_work=frozenset({"export"}), service_told=told)
    assert (StepKind.START_EXPORT, EXPORT.applied) not in summary(
        plan(LAYOUT, WITH_EXPORTS, here)
    )
    edited = replace(WITH_EXPORTS, exports=b"format: ocsf\n")
    assert (StepKind.START_EXPORT, EXPORT.applied) in summary(
        plan(LAYOUT, edited, here)
    )


def test_a_run_folder_of_another_account_is_given_to_root() -> None:
    run = Folder({}, 0o1775, (0, 13))
    wanted = replace(WANTED, run=run)
    there = {**HERE.files, LAYOUT.run: Folder({}, 0o755, (13, 13))}
    planned = plan(LAYOUT, wanted, replace(HERE, files=there))
    assert planned.steps == (SetupStep(StepKind.GIVE_TO_ROOT, LAYOUT.run, run),)
    there[LAYOUT.run] = run
    assert plan(LAYOUT, wanted, replace(HERE, files=there)).steps == ()


def test_a_second_run_has_no_steps() -> None:
    planned = plan(LAYOUT, WANTED, HERE)
    assert planned.steps == ()
    assert planned.notes == tuple(
        (name, "runs, unchanged") for name in ("maintenance", "squid", "exporter")
    )


PREVIOUS = LAYOUT.conf.with_name("squid.conf.previous")
FORMER = LAYOUT.former_conf
THEIRS, OTHERS = File(b"http_port 3128\n"), File(b"http_port 3127\n")


@pytest.mark.parametrize(
    ("wanted", "present", "steps"),
    [
        pytest.param(
            with_generation(fragment=b"newer\n"),
            HERE,
            [*SECOND, (StepKind.RECONFIGURE_SQUID, LAYOUT.applied)],
            id="a changed fragment reconfigures",
        ),
        pytest.param(
            with_generation(),
            HERE,
            SECOND,
            id="a generation in which Squid reads the same",
        ),
        pytest.param(
            replace(with_generation(CONF.replace("3129", "3130")), listen="3130"),
            HERE,
            [*SECOND, (StepKind.RESTART_SQUID, LAYOUT.applied)],
            id="another port restarts",
        ),
        pytest.param(
            replace(with_generation(fragment=b"workers 2\n"), workers=2),
            HERE,
            [*SECOND, (StepKind.RESTART_SQUID, LAYOUT.applied)],
            id="another number of workers restarts",
        ),
        pytest.param(
            with_files(
                signing_cert=File(b"another\n"), signing_key=File(b"another\n", 0o600)
            ),
            HERE,
            [
                *(
                    (StepKind.PUT, path)
                    for path in (LAYOUT.signing_cert, LAYOUT.signing_key)
                ),
                (StepKind.RESTART_SQUID, LAYOUT.applied),
            ],
            id="another intermediate restarts",
        ),
        pytest.param(
            replace(
                WANTED, gone=(LAYOUT.ca_key, LAYOUT.ca_key.with_name("ca.key.previous"))
            ),
            here(ca_key=File(b"key\n", 0o600)),
            [(StepKind.REMOVE, LAYOUT.ca_key)],
            id="a key that must not stay is removed where it is",
        ),
        pytest.param(
            with_files(program=Link("../venv-2/bin/squidkeeper")),
            HERE,
            [
                (StepKind.PUT, LAYOUT.program),
                (StepKind.START_MAINTENANCE, MAINTENANCE.applied),
                (StepKind.RECONFIGURE_SQUID, LAYOUT.applied),
                (StepKind.START_EXPORTER, EXPORTER.applied),
            ],
            id="a new program",
        ),
        pytest.param(
            WANTED,
            replace(HERE, squid_runs=False),
            [(StepKind.START_SQUID, LAYOUT.applied)],
            id="Squid has ended",
        ),
        pytest.param(
            WANTED,
            replace(HERE, changed_since_told=True),
            [(StepKind.RECONFIGURE_SQUID, LAYOUT.applied)],
            id="a file was changed and changed back",
        ),
        pytest.param(
            WANTED,
            replace(HERE, services_work=frozenset({"maintenance"})),
            [(StepKind.START_EXPORTER, EXPORTER.applied)],
            id="the exporter has ended",
        ),
        pytest.param(
            WANTED,
            here(conf=File(f"{CONF}# an edit\n".encode())),
            [
                (StepKind.PUT, PREVIOUS),
                (StepKind.PUT, LAYOUT.conf),
            ],
            id="an edited squid.conf is kept beside",
        ),
        pytest.param(
            WANTED,
            here(conf=THEIRS),
            [
                (StepKind.PUT, FORMER),
                (StepKind.PUT, LAYOUT.conf),
                (StepKind.RESTART_SQUID, LAYOUT.applied),
            ],
            id="the operator's squid.conf is kept",
        ),
        pytest.param(
            WANTED,
            here(conf=THEIRS, former_conf=OTHERS),
            [
                (StepKind.PUT, FORMER.with_name(f"{FORMER.name}.previous")),
                (StepKind.PUT, FORMER),
                (StepKind.PUT, LAYOUT.conf),
                (StepKind.RESTART_SQUID, LAYOUT.applied),
            ],
            id="one that was kept is not lost",
        ),
        pytest.param(
            replace(
                WANTED,
                files={
                    path: entry for path, entry in FILES.items() if path != LAYOUT.conf
                },
            ),
            replace(
                here(conf=File(b"include squidkeeper.conf\n")),
                yours=True,
                squid_runs=False,
            ),
            [],
            id="a squid.conf of the operator's that includes the fragment",
        ),
        pytest.param(
            replace(WANTED, start_squid=False, start_services=False),
            replace(HERE, squid_runs=False, services_work=frozenset()),
            [],
            id="no start",
        ),
        pytest.param(
            replace(WANTED, start_squid=False, start_services=False),
            replace(HERE, squid_told="", service_told={}),
            [(StepKind.PUT, LAYOUT.applied), (StepKind.PUT, EXPORTER.applied)],
            id="no start, ports noted",
        ),
        pytest.param(
            replace(WANTED, exporter="none"),
            HERE,
            [
                (StepKind.STOP_SERVICE, EXPORTER.unit),
                (StepKind.REMOVE, EXPORTER.unit),
                (StepKind.REMOVE, LAYOUT.observe),
                (StepKind.PUT, EXPORTER.applied),
            ],
            id="no exporter any more",
        ),
        pytest.param(
            replace(WANTED, store=True),
            HERE,
            [(StepKind.PUT_STORE, LAYOUT.ssl_db)],
            id="a new store",
        ),
        pytest.param(
            replace(WANTED, drop_store=True), HERE, [], id="no store to remove"
        ),
        pytest.param(
            replace(WANTED, drop_store=True),
            replace(HERE, files={**HERE.files, LAYOUT.ssl_db: Folder({})}),
            [(StepKind.REMOVE, LAYOUT.ssl_db)],
            id="a store that nothing uses",
        ),
        pytest.param(
            WANTED,
            replace(HERE, closed=(LAYOUT.state, LAYOUT.counts)),
            [
                (StepKind.GIVE_TO_SQUID, LAYOUT.state),
                (StepKind.GIVE_TO_SQUID, LAYOUT.counts),
            ],
            id="a closed state",
        ),
        pytest.param(
            replace(
                WANTED,
                folders={**FOLDERS, LAYOUT.archive: Folder({}, 0o750, (61500, 13))},
            ),
            replace(HERE, files={**HERE.files, LAYOUT.archive: Folder({})}),
            [(StepKind.GIVE_BACK, LAYOUT.archive)],
            id="an archive of root's",
        ),
        pytest.param(
            replace(WANTED, own_addresses=b""),
            HERE,
            [(StepKind.WRITE_OWN_ADDRESSES, LAYOUT.state)],
            id="an address less",
        ),
        pytest.param(
            WANTED,
            here(own_addresses=Link("/etc/shadow")),
            [(StepKind.WRITE_OWN_ADDRESSES, LAYOUT.state)],
            id="a link in place of the own addresses",
        ),
        pytest.param(
            replace(WANTED, store=True, selinux=True),
            HERE,
            [(StepKind.PUT_STORE, LAYOUT.ssl_db), (StepKind.LABEL, LAYOUT.state)],
            id="SELinux labels what changes",
        ),
        pytest.param(
            replace(WANTED, selinux=True), HERE, [], id="SELinux without a change"
        ),
    ],
)
def test_the_steps_are_those_between_what_is_and_what_should_be(
    wanted: Wanted, present: Present, steps: list[tuple[StepKind, Path]]
) -> None:
    assert summary(plan(LAYOUT, wanted, present)) == steps


def test_what_is_replaced_is_kept_as_it_was() -> None:
    planned = plan(LAYOUT, WANTED, here(conf=THEIRS))
    assert SetupStep(StepKind.PUT, FORMER, THEIRS) in planned.steps
    assert (
        "squid.conf",
        f"the one that was there is kept as {FORMER}",
    ) in planned.notes


def test_a_page_is_read_again_and_only_pages_are_hashed() -> None:
    pages = {"ERR_DENIED": File(b"denied\n"), "README": File(b"changed\n")}
    planned = plan(LAYOUT, with_generation(pages=Folder(pages)), HERE)
    assert summary(planned) == SECOND
    newer = Folder({**pages, "ERR_DENIED": File(b"newer\n")})
    planned = plan(LAYOUT, with_generation(pages=newer), HERE)
    assert noted(StepKind.RECONFIGURE_SQUID, planned) != HERE.squid_told


def test_a_step_is_one_line_and_names_the_stage_that_it_fails_in() -> None:
    step = SetupStep(StepKind.PUT, Path("/etc/squid/squid.conf"), File(b"secret"))
    assert (str(step), step.stage) == ("write /etc/squid/squid.conf", "put in place")
    assert "secret" not in repr(step)
    stages = {step.action: step.stage for step in FRESH.steps}
    assert (
        stages[StepKind.START_MAINTENANCE],
        stages[StepKind.START_SQUID],
        stages[StepKind.START_EXPORTER],
    ) == (("maintenance", "start", "exporter"))


def test_gateways_beside_each_other_have_names_addresses_and_users_of_their_own() -> (
    None
):
    other = Layout.of(Path("/srv/other"))
    assert LAYOUT.squid_service != other.squid_service
    assert LAYOUT.resolver != other.resolver
    assert LAYOUT.bodies.rpartition(":")[0] == LAYOUT.resolver, (
        "no two gateways share the port of the body service"
    )
    assert int(LAYOUT.bodies.rpartition(":")[2]) < 1024, (
        "another account could answer in place of the body service"
    )
    assert Layout.of(None).squid_service == "squid"
    assert Layout.of(None).replacements() == {
        name: name for name in Layout.of(None).replacements()
    }
    others = [
        Layout.of(Path(f"/srv/{name}")).user_without_systemd("secrets")
        for name in "abcdefgh"
    ]
    assert len({LAYOUT.user_without_systemd("secrets"), *others}) == len(others) + 1
    users = {
        ACCOUNTS[service]: LAYOUT.user_without_systemd(service) for service in ACCOUNTS
    }
    assert len({*users.values()}) == len(users)
    assert all(61184 <= user <= 65519 for user in others)
