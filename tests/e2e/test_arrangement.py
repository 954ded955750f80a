"""The one file that Squid reads means to Squid what the core and its parts mean: its
own `mgr:config` is the same.
"""

import os
from http.client import HTTPConnection
from pwd import getpwnam

import pytest
from msgspec.structs import replace

from squidkeeper.base.squid_account import Account
from squidkeeper.configuration.rendering import FRAGMENT, Values, expand
from squidkeeper.operate.setup.generations import placed
from squidkeeper.operate.setup.rendering import read_templates
from squidkeeper.serving.parts import Part
from tests.configuration.test_rendering import FULL, in_squids_order
from tests.conftest import WORKERS
from tests.generations import put_rendered
from tests.waiting import wait_for

from .gateway import Gateway, NewGateway

NOTHING = Values(
    keys=frozenset({"core", Part.CERTIFICATES, Part.OVERRIDE_HEADERS, Part.PAGES})
)
ALL = {
    "nothing": NOTHING,
    "everything with a parent for all": FULL,
    "everything with shared connections": replace(FULL, default=None),
}
OPEN = (
    "cachemgr_passwd none config",
    "http_access allow localhost manager",
    "adapted_http_access allow localhost manager",
)


@pytest.fixture(scope="module")
def gateway(new_gateway: NewGateway) -> Gateway:
    gateway = new_gateway("version: 1\n")
    gateway.local_conf(*OPEN)
    gateway.renders = False
    return gateway.start()


def page(gateway: Gateway) -> str:
    """What Squid has understood; empty while it does not listen."""
    connection = HTTPConnection(*gateway.address, 20, source_address=("127.0.0.1", 0))
    try:
        connection.request("GET", "/squid-internal-mgr/config")
        response = connection.getresponse()
        text = response.read().decode()
    except OSError:
        return ""
    finally:
        connection.close()
    assert response.status == 200, text
    return text


def understood(gateway: Gateway) -> list[str]:
    before = gateway.cache_log().count("Accepting ")
    gateway.reconfigure()
    wait_for(
        lambda: gateway.cache_log().count("Accepting ") > before, "Squid to read them"
    )
    return wait_for(lambda: page(gateway), "Squid to listen").splitlines()


def put_parts(gateway: Gateway, values: Values) -> None:
    """Write the lines of the core, and those of each part where it is included."""
    layout = gateway.layout
    texts = expand(read_templates(layout), values, layout.local.read_text())
    lines = in_squids_order(texts)
    texts[FRAGMENT] = "".join(f"{line.text}\n" for line in lines)
    folder = layout.generation.resolve()
    for name in (FRAGMENT, layout.logformat.name):
        (folder / name).write_text(placed(texts[name], layout, folder))


def put_one_file(gateway: Gateway, values: Values) -> None:
    layout, entry = gateway.layout, getpwnam("proxy")
    account = Account(entry.pw_name, entry.pw_uid, entry.pw_gid)
    put_rendered(layout, account, values)


@pytest.mark.skipif(WORKERS in os.environ, reason="one page a worker")
@pytest.mark.parametrize("name", ALL)
def test_squid_understands_the_one_file_as_the_core_and_its_parts(
    gateway: Gateway, name: str
) -> None:
    put_parts(gateway, ALL[name])
    parts = understood(gateway)
    put_one_file(gateway, ALL[name])
    assert understood(gateway) == parts
    assert len(parts) > 100
