"""Decides which network addresses a user's URL may lead to; knows nothing of HTTP."""

from __future__ import annotations

import ipaddress
from typing import Iterable, List, Optional, Set, Tuple, Union

from ..plan import UrlPolicy

__all__ = ["AddressPolicy", "AddressRefused", "special"]

_Address = Union[ipaddress.IPv4Address, ipaddress.IPv6Address]
_Network = Union[ipaddress.IPv4Network, ipaddress.IPv6Network]

METADATA = "a cloud metadata address"

# Not `is_global`: what that says has changed between versions of Python. The tables are IANA's special-purpose
# registries, and Azure's metadata address, which looks like any other.
_V4: List[Tuple[ipaddress.IPv4Network, str]] = [
    (ipaddress.IPv4Network(network), what)
    for network, what in (
        ("0.0.0.0/8", "an address of this host"),
        ("10.0.0.0/8", "a private address"),
        ("100.64.0.0/10", "a shared (carrier-grade NAT) address"),
        ("127.0.0.0/8", "a loopback address"),
        ("168.63.129.16/32", METADATA),
        ("169.254.169.254/32", METADATA),
        ("169.254.170.2/32", METADATA),
        ("169.254.0.0/16", "a link-local address"),
        ("172.16.0.0/12", "a private address"),
        ("192.0.0.0/24", "a reserved address"),
        ("192.0.2.0/24", "a documentation address"),
        ("192.88.99.0/24", "a reserved address"),
        ("192.168.0.0/16", "a private address"),
        ("198.18.0.0/15", "a benchmarking address"),
        ("198.51.100.0/24", "a documentation address"),
        ("203.0.113.0/24", "a documentation address"),
        ("224.0.0.0/4", "a multicast address"),
        ("240.0.0.0/4", "a reserved address"),
    )
]
_V6: List[Tuple[ipaddress.IPv6Network, str]] = [
    (ipaddress.IPv6Network(network), what)
    for network, what in (
        ("::1/128", "a loopback address"),
        ("::/128", "an address of this host"),
        ("fd00:ec2::254/128", METADATA),
        ("fc00::/7", "a private address"),
        ("fe80::/10", "a link-local address"),
        ("fec0::/10", "a private address"),
        ("ff00::/8", "a multicast address"),
        ("2001:db8::/32", "a documentation address"),
        ("2001::/32", "a Teredo address"),
        ("2001::/23", "a reserved address"),
        ("2002::/16", "a 6to4 address"),
        ("3fff::/20", "a documentation address"),
    )
]
_V6_GLOBAL = ipaddress.IPv6Network("2000::/3")
_V6_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


class AddressRefused(Exception):
    """A host or address that the policy does not allow; `why` is half a sentence."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


def _plain(text: str) -> _Address:
    """Parse an address; one that only wraps an IPv4 address (mapped, NAT64) is unwrapped."""
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address in _V6_NAT64:
            return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address


def special(text: str) -> Optional[str]:
    """Say what is special about an address (``a loopback address``); None for an ordinary public one."""
    address = _plain(text)
    if isinstance(address, ipaddress.IPv4Address):
        return next((what for network, what in _V4 if address in network), None)
    what = next((what for network, what in _V6 if address in network), None)
    if what is None and address not in _V6_GLOBAL:
        return "a reserved address"
    return what


class AddressPolicy:
    """A `UrlPolicy`, ready to be asked.

    Raises `ValueError` when an entry of `allowed_hosts` is neither host, host:port, address nor network.
    """

    def __init__(self, policy: UrlPolicy) -> None:
        self._allow_private = policy.allow_private
        self._networks: List[Tuple[_Network, Optional[int]]] = []
        self._hosts: Set[Tuple[str, Optional[int]]] = set()
        for entry in policy.allowed_hosts:
            self._add(entry.strip())

    def _add(self, entry: str) -> None:
        try:
            self._networks.append((ipaddress.ip_network(entry, strict=False), None))
            return
        except ValueError:
            host, port = _host_port(entry)
        try:
            self._networks.append((ipaddress.ip_network(host, strict=False), port))
        except ValueError:
            self._hosts.add((_canonical(host), port))

    def check(self, host: str, port: int, addresses: Iterable[str]) -> None:
        """Raise `AddressRefused` unless every address that the host resolves to is allowed.

        Every one, not only the one to be used: a name that mixes public and private addresses is how a
        private one is smuggled in.
        """
        name = _canonical(host)
        if (name, None) in self._hosts or (name, port) in self._hosts:
            return
        for text in addresses:
            what = special(text)
            if what is not None and self._allow_private and what != METADATA:
                # A metadata address gives away the host's own credentials: only by its name, never in a sweep.
                continue
            if what is not None and not self._listed(text, port):
                raise AddressRefused(
                    "%s is %s" % (host, what) if text == host else "%s resolves to %s, %s" % (host, text, what)
                )

    def _listed(self, text: str, port: int) -> bool:
        forms = {_plain(text), ipaddress.ip_address(text.partition("%")[0])}
        return any(
            address in network
            for address in forms
            for network, wanted in self._networks
            if address.version == network.version and wanted in (None, port)
        )


def _canonical(host: str) -> str:
    return host.strip("[]").rstrip(".").lower()


def _host_port(entry: str) -> Tuple[str, Optional[int]]:
    host, colon, port = entry.rpartition(":")
    if not colon or entry.endswith("]"):
        host, port = entry, ""
    if not host.strip("[]") or "/" in host or " " in host or (colon and port and not port.isdigit()):
        raise ValueError("allowed_hosts: '%s' is neither a host, host:port, an address nor a network" % entry)
    return host.strip("[]"), int(port) if port else None
