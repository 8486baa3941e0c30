"""The way out to an address that a tenant chose: one POST, to nobody inside.

Owns what may be called (https, public addresses, or what the operator allows) and how: the name is looked up once,
every address it has is checked, and the connection goes to a checked address, so a name that changes its mind between
look-up and call (DNS rebinding) reaches nobody else. Redirects are not followed. Everything is bounded: time, bytes.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from urllib.parse import SplitResult, urlsplit

from billing.errors import InvalidInput

URL_LENGTH_MAX = 2_000
ANSWER_BYTES_MAX = 64 * 1024
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_6TO4 = ipaddress.IPv6Network("2002::/16")


class NotReachable(Exception):
    """No answer: refused, timed out, not allowed, no such name, bad certificate."""


@dataclass(frozen=True)
class Answer:
    status: int
    retry_after: timedelta | None = None


@dataclass(frozen=True)
class OutboundRules:
    """What the operator allows beside public https addresses."""

    allowed: tuple[Network, ...] = ()  # private networks that may be called, also without TLS

    @classmethod
    def of(cls, text: str) -> OutboundRules:
        """`10.1.0.0/16, 127.0.0.1/32`. Raises ValueError for what is no network."""
        return cls(tuple(ipaddress.ip_network(part.strip()) for part in text.split(",") if part.strip()))

    def allows(self, address: Address) -> bool:
        return any(address.version == network.version and address in network for network in self.allowed)

    def may_reach(self, address: Address) -> bool:
        """Whether an address is public, or allowed by name of its network."""
        return self.allows(inner_of(address)) or self.allows(address) or is_public(address)


def inner_of(address: Address) -> Address:
    """The IPv4 address that an IPv6 address is only another writing of, or leads to by translation."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address in _NAT64:
            return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if address in _6TO4:
            return ipaddress.IPv4Address((int(address) >> 80) & 0xFFFFFFFF)
    return address


def is_public(address: Address) -> bool:
    inner = inner_of(address)
    return inner.is_global and not (inner.is_multicast or inner.is_reserved or inner.is_unspecified)


def checked_url(text: str, rules: OutboundRules) -> SplitResult:
    """The parts of an address that may be called as far as its text says. InvalidInput with what is wrong."""
    if (
        len(text) > URL_LENGTH_MAX
        or not text.isascii()
        or any(sign.isspace() or not sign.isprintable() for sign in text)
    ):
        raise InvalidInput("the url is too long or holds characters that none has")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise InvalidInput(f"this is no url: {error}") from error
    if parts.scheme not in ("https", "http") or not parts.hostname:
        raise InvalidInput("an https url with a host is needed")
    if parts.username is not None or parts.password is not None or parts.fragment:
        raise InvalidInput("the url holds a user, a password or a fragment")
    if port == 0:
        raise InvalidInput("there is no port 0")
    if parts.scheme == "http" and not rules.allowed:
        raise InvalidInput("https is needed: what is sent tells of money")
    literal = _literal(parts.hostname)
    if literal is not None and not rules.may_reach(literal):
        raise InvalidInput(f"{parts.hostname} is no public address")
    return parts


def _literal(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


LookUp = Callable[[str, int], Sequence[str]]


def look_up(host: str, port: int) -> list[str]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(one[4][0]) for one in found))


@dataclass(frozen=True)
class WebhookHttp:
    """POSTs to endpoints; may be used by several threads."""

    rules: OutboundRules = field(default_factory=OutboundRules)
    timeout_s: float = 15.0  # for all of it
    look_up: LookUp = look_up
    trust: Callable[[], ssl.SSLContext] = ssl.create_default_context

    def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        """One try. NotReachable where there is no answer."""
        deadline = time.monotonic() + self.timeout_s
        try:
            parts = checked_url(url, self.rules)
        except InvalidInput as error:
            raise NotReachable(error.detail) from error
        assert parts.hostname is not None
        port = parts.port or (443 if parts.scheme == "https" else 80)
        try:
            sock = self._connected(parts, parts.hostname, port, deadline)
            connection = http.client.HTTPConnection(parts.hostname, port)
            connection.sock = sock
            # The time of a socket is for each byte; an answer that drips may not hold a worker for hours.
            watch = threading.Timer(_left(deadline), _cut, [sock])
            watch.daemon = True
            watch.start()
            try:
                target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
                sent = {"Content-Type": "application/json", "User-Agent": "cloudbilling-webhooks/1", **headers}
                connection.request("POST", target, body=body, headers={**sent, "Connection": "close"})
                sock.settimeout(_left(deadline))
                response = connection.getresponse()
                _left(deadline)  # headers that were cut off look like headers that ended
                answer = Answer(response.status, _retry_after(response.getheader("Retry-After")))
                self._drain(response, sock, deadline)
                return answer
            finally:
                watch.cancel()
                connection.close()
        except (OSError, http.client.HTTPException, UnicodeError) as error:  # also time-outs and bad certificates
            raise NotReachable(f"{type(error).__name__}: {error}"[:300]) from error

    def _connected(self, parts: SplitResult, host: str, port: int, deadline: float) -> socket.socket:
        addresses = [ipaddress.ip_address(one.partition("%")[0]) for one in self.look_up(host, port)]
        refused = [one for one in addresses if not self.rules.may_reach(one)]
        if refused or not addresses:
            raise NotReachable(f"{host} leads to {refused[0]}, which is no public address" if refused else "no address")
        if parts.scheme == "http" and not all(self.rules.allows(inner_of(one)) for one in addresses):
            raise NotReachable("https is needed outside of the networks that the operator allows")
        error: OSError | None = None
        for address in addresses[:4]:
            try:
                plain = socket.create_connection((str(address), port), timeout=_left(deadline))
            except OSError as failed:
                error = failed
                continue
            if parts.scheme == "http":
                return plain
            try:
                return self.trust().wrap_socket(plain, server_hostname=host)
            except BaseException:
                plain.close()
                raise
        assert error is not None
        raise error

    def _drain(self, response: http.client.HTTPResponse, sock: socket.socket, deadline: float) -> None:
        """Read a little of the answer, so that the other side is not reset while it writes; nobody keeps it."""
        left = ANSWER_BYTES_MAX
        while left > 0:
            try:
                sock.settimeout(_left(deadline))
                part = response.read1(left)
            except (OSError, http.client.HTTPException):
                return  # the status has come: that is the answer
            if not part:
                return
            left -= len(part)


def _cut(sock: socket.socket) -> None:
    with suppress(OSError):  # it has ended by itself
        sock.shutdown(socket.SHUT_RDWR)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("no answer in time")
    return left


def _retry_after(text: str | None) -> timedelta | None:
    if text is None:
        return None
    if text.isdigit() and len(text) < 8:
        return timedelta(seconds=int(text))
    try:
        at = parsedate_to_datetime(text)
    except ValueError:
        return None
    if at.tzinfo is None:
        return None
    return max(at - datetime.now(UTC), timedelta(0))
