"""Which addresses are refused, and what opens them again."""

from __future__ import annotations

import pytest

from tesgate.runner.plan import UrlPolicy
from tesgate.runner.transfer.policy import METADATA, AddressPolicy, AddressRefused, special

REFUSED = [
    "0.0.0.0",
    "0.1.2.3",
    "10.1.2.3",
    "100.64.0.1",
    "100.127.255.255",
    "100.100.100.200",
    "127.0.0.1",
    "127.9.9.9",
    "168.63.129.16",
    "169.254.169.254",
    "169.254.1.1",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.192",
    "192.168.1.1",
    "198.18.0.1",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::ffff:10.0.0.1",
    "::ffff:169.254.169.254",
    "::127.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b:1::1",
    "100::1",
    "2001::1",
    "2001:db8::1",
    "2002:7f00:1::",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "ff02::1",
]
PUBLIC = ["1.1.1.1", "100.63.255.255", "100.128.0.0", "172.32.0.1", "8.8.8.8", "2606:4700::1111", "64:ff9b::808:808"]


@pytest.mark.parametrize("address", REFUSED)
def test_special_addresses_are_refused(address: str) -> None:
    assert special(address)
    with pytest.raises(AddressRefused):
        AddressPolicy(UrlPolicy()).check("host.example", 80, [address])
    AddressPolicy(UrlPolicy(allowed_hosts=["host.example"])).check("host.example", 80, [address])
    everywhere = AddressPolicy(UrlPolicy(allow_private=True))
    if special(address) == METADATA:
        # It gives away the host's own credentials: never in a sweep.
        with pytest.raises(AddressRefused):
            everywhere.check("host.example", 80, [address])
    else:
        everywhere.check("host.example", 80, [address])


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_allowed(address: str) -> None:
    assert special(address) is None
    AddressPolicy(UrlPolicy()).check("host.example", 80, [address])


def test_one_bad_address_among_good_ones_is_enough() -> None:
    with pytest.raises(AddressRefused, match=r"10\.0\.0\.1, a private address"):
        AddressPolicy(UrlPolicy()).check("host.example", 80, ["1.1.1.1", "10.0.0.1"])


@pytest.mark.parametrize(
    ("entry", "host", "port", "address", "allowed"),
    [
        ("files.lab", "files.lab", 80, "10.0.0.1", True),
        ("files.lab", "FILES.LAB.", 8080, "10.0.0.1", True),
        ("files.lab", "other.lab", 80, "10.0.0.1", False),
        ("files.lab", "x.files.lab", 80, "10.0.0.1", False),
        ("files.lab:8080", "files.lab", 8080, "10.0.0.1", True),
        ("files.lab:8080", "files.lab", 80, "10.0.0.1", False),
        ("10.0.0.0/8", "any.name", 80, "10.9.9.9", True),
        ("10.0.0.0/8", "any.name", 80, "192.168.0.1", False),
        ("10.0.0.0/8", "any.name", 80, "::ffff:10.0.0.1", True),
        ("10.0.0.1", "10.0.0.1", 80, "10.0.0.1", True),
        ("10.0.0.1", "10.0.0.2", 80, "10.0.0.2", False),
        ("10.0.0.1:81", "10.0.0.1", 81, "10.0.0.1", True),
        ("10.0.0.1:81", "10.0.0.1", 80, "10.0.0.1", False),
        ("::1", "::1", 80, "::1", True),
        ("[::1]:81", "::1", 81, "::1", True),
        ("[::1]:81", "::1", 80, "::1", False),
        ("fd00::/8", "any.name", 80, "fd12::1", True),
    ],
)
def test_allowed_hosts(entry: str, host: str, port: int, address: str, allowed: bool) -> None:
    policy = AddressPolicy(UrlPolicy(allowed_hosts=[entry]))
    if allowed:
        policy.check(host, port, [address])
    else:
        with pytest.raises(AddressRefused):
            policy.check(host, port, [address])


@pytest.mark.parametrize("entry", ["", "http://x", "a b", "host:port", "10.0.0.0/40"])
def test_nonsense_in_allowed_hosts_is_refused(entry: str) -> None:
    with pytest.raises(ValueError, match="allowed_hosts"):
        AddressPolicy(UrlPolicy(allowed_hosts=[entry]))
