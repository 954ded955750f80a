"""The network, origins and gateways of tests/e2e, for this folder's tests; the gateway
under fault has an exporter.
"""

import pytest

from tests.e2e.conftest import (
    all_origins,
    exporter,
    folder,
    gateways,
    gateways_of_one_test,
    internet,
    names,
    new_gateway,
    origins,
    ports,
    prototype,
    site,
)
from tests.e2e.gateway import Gateway, NewGateway

from .expect import POLICY, TOKEN

__all__ = [
    "all_origins",
    "exporter",
    "folder",
    "gateways",
    "gateways_of_one_test",
    "internet",
    "names",
    "new_gateway",
    "origins",
    "ports",
    "prototype",
    "site",
]


def prepared(gateway: Gateway) -> Gateway:
    """Set up a gateway for the policy of these tests; a tunnel whose certificate is
    lost ends soon.
    """
    gateway.local_conf("request_timeout 10 seconds")
    gateway.secret("token", TOKEN)
    return gateway


@pytest.fixture(scope="module")
def gateway(new_gateway: NewGateway) -> Gateway:
    """The gateway that the tests of a module share, each of which leaves it
    as it was.
    """
    return prepared(new_gateway(POLICY)).start()
