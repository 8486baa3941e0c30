"""The way out to endpoints: signed posts to public places, nobody inside, and an end to everything."""

import ipaddress
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from billing.errors import InvalidInput
from billing.webhooks import TRIES_MAX, WAITS, headers_of, is_signed, key_of, new_secret, next_try
from storage.gateways.webhook_http import NotReachable, OutboundRules, WebhookHttp, checked_url

NONE = OutboundRules()
LOCAL = OutboundRules.of("127.0.0.1/32")
NOW = datetime(2026, 5, 9, 8, 30, tzinfo=UTC)


class Endpoint(BaseHTTPRequestHandler):
    """Answers what its path says."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        what = self.path.strip("/")
        if what == "moved":
            self.send_response(302)
            self.send_header("Location", "http://127.0.0.1:1/inside")
        elif what == "later":
            self.send_response(503)
            self.send_header("Retry-After", "120")
        elif what == "drip":
            self.wfile.write(b"HTTP/1.1 200 OK\r\n")
            with suppress(OSError):  # the caller has had enough
                for _ in range(100):
                    self.wfile.write(b"X-Slow: 1\r\n")
                    self.wfile.flush()
                    time.sleep(0.1)
            return
        elif what == "huge":
            self.send_response(200)
            self.end_headers()
            with suppress(OSError):
                for _ in range(1_000):
                    self.wfile.write(b"x" * 100_000)
            return
        else:
            self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


REFUSED = (
    *("https://127.0.0.1/x", "https://10.1.2.3/", "https://192.168.0.1/", "https://172.16.0.1/", "https://0.0.0.0/"),
    *("https://169.254.169.254/latest/meta-data", "https://[::1]/", "https://[fe80::1]/", "https://[fc00::1]/"),
    *("https://[::ffff:127.0.0.1]/", "https://[64:ff9b::7f00:1]/", "https://[2002:7f00:1::]/", "https://224.0.0.1/"),
    *("https://100.64.0.1/", "https://255.255.255.255/", "https://240.0.0.1/", "https://[::]/"),
    *("http://example.org/", "ftp://example.org/", "https:///x", "https://user:pw@example.org/", "file:///etc/passwd"),
    *("https://example.org/#x", "https://example.org:0/", "https://example.org:99999/", "https://exa mple.org/"),
    *("https://ex\tample.org/", "https://exämple.org/", "https://" + "x" * 3_000, "", "//example.org/"),
)


@pytest.mark.parametrize("text", REFUSED)
def test_addresses_that_are_not_public_and_urls_that_hide_something_are_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        checked_url(text, NONE)


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.0.0.7", "::1", "::ffff:10.0.0.7", "64:ff9b::a00:7", "169.254.169.254", "fd00::1", "2002:a00:7::"],
)
@pytest.mark.parametrize("beside", [[], ["93.184.215.14"]])
def test_a_name_that_leads_inside_is_not_called_whatever_else_it_leads_to(address: str, beside: list[str]) -> None:
    called = WebhookHttp(NONE, look_up=lambda host, port: [*beside, address])
    with pytest.raises(NotReachable, match="no public address"):
        called.post("https://hooks.example.org/", b"{}", {})


def test_what_is_checked_is_what_is_called(url: str) -> None:
    """A name that answers otherwise the second time (DNS rebinding) is looked up once only."""
    answers = iter([["127.0.0.1"], ["10.0.0.1"], ["10.0.0.1"]])
    asked: list[str] = []

    def look_up(host: str, port: int) -> list[str]:
        asked.append(host)
        return next(answers)

    port = url.rpartition(":")[2]
    answer = WebhookHttp(LOCAL, look_up=look_up).post(f"http://hooks.example.org:{port}/", b"{}", {})
    assert (answer.status, asked) == (204, ["hooks.example.org"])


def test_plain_http_goes_to_allowed_networks_only(url: str) -> None:
    with pytest.raises(NotReachable, match="https is needed"):
        WebhookHttp(LOCAL, look_up=lambda *_: ["93.184.215.14"]).post("http://hooks.example.org/", b"{}", {})
    with pytest.raises(NotReachable):
        WebhookHttp(NONE).post(url, b"{}", {})


def test_redirects_are_not_followed_and_a_wish_to_wait_is_heard(url: str) -> None:
    http = WebhookHttp(LOCAL)
    assert http.post(f"{url}/moved", b"{}", {}).status == 302
    answer = http.post(f"{url}/later", b"{}", {})
    assert (answer.status, answer.retry_after) == (503, timedelta(seconds=120))


def test_an_answer_that_drips_or_never_ends_holds_nobody(url: str) -> None:
    http = WebhookHttp(LOCAL, timeout_s=0.6)
    began = time.monotonic()
    with pytest.raises(NotReachable):
        http.post(f"{url}/drip", b"{}", {})
    assert http.post(f"{url}/huge", b"{}", {}).status == 200
    assert time.monotonic() - began < 4


def test_nobody_there_a_silent_one_and_a_bad_certificate_are_no_answer(url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(NotReachable):
            WebhookHttp(LOCAL, timeout_s=0.3).post(f"http://127.0.0.1:{port}/", b"{}", {})
    with pytest.raises(NotReachable):
        WebhookHttp(LOCAL, timeout_s=0.3).post(f"http://127.0.0.1:{port}/", b"{}", {})
    with pytest.raises(NotReachable, match="SSL"):
        WebhookHttp(LOCAL).post(url.replace("http:", "https:"), b"{}", {})


def test_networks_of_the_operator_are_read_and_wrong_ones_refused() -> None:
    rules = OutboundRules.of(" 10.1.0.0/16, ::1/128 ")
    assert rules.may_reach(ipaddress.ip_address("10.1.2.3"))
    assert rules.may_reach(ipaddress.ip_address("::ffff:10.1.2.3"))
    assert not rules.may_reach(ipaddress.ip_address("10.2.0.1"))
    with pytest.raises(ValueError, match="host bits"):
        OutboundRules.of("10.1.0.1/16")


def test_signatures_are_those_of_the_standard() -> None:
    """The example of the Standard Webhooks specification, signed by hand with its secret."""
    import base64
    import hashlib
    import hmac

    secret, body = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", b'{"test": 2432232314}'
    headers = headers_of("msg_p5jXN8AQM9LWM0D4loKWxJek", datetime.fromtimestamp(1614265330, UTC), body, [secret])
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    key = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    by_hand = hmac.new(key, b'msg_p5jXN8AQM9LWM0D4loKWxJek.1614265330.{"test": 2432232314}', hashlib.sha256)
    assert headers["webhook-signature"] == "v1," + base64.b64encode(by_hand.digest()).decode()


def test_a_receiver_takes_either_secret_and_nothing_that_was_changed_or_is_old() -> None:
    old, new = new_secret(b"o" * 32), new_secret(b"n" * 32)
    headers = headers_of("m1", NOW, b"body", [new, old])
    assert key_of(new) == b"n" * 32
    assert is_signed(headers, b"body", old, NOW)
    assert is_signed(headers, b"body", new, NOW + timedelta(seconds=299))
    assert not is_signed(headers, b"body", new, NOW + timedelta(seconds=301))
    assert not is_signed(headers, b"bodY", new, NOW)
    assert not is_signed(headers | {"webhook-id": "m2"}, b"body", new, NOW)
    assert not is_signed(headers, b"body", new_secret(b"x" * 32), NOW)
    with pytest.raises(ValueError, match="base64"):
        key_of("whsec_!")


def test_tries_come_later_and_later_and_end() -> None:
    at, moments = NOW, list[datetime]()
    for tries in range(1, TRIES_MAX):
        after = next_try(tries, at)
        assert after is not None
        assert after > at
        moments.append(after)
        at = after
    assert next_try(TRIES_MAX, at) is None
    assert timedelta(days=2) < moments[-1] - NOW < timedelta(days=4)
    assert [later - earlier for earlier, later in zip([NOW, *moments], moments, strict=False)] == list(WAITS)
    assert next_try(1, NOW, timedelta(seconds=90)) == NOW + timedelta(seconds=90)
    assert next_try(1, NOW, timedelta(seconds=1)) == NOW + WAITS[0]
    assert next_try(1, NOW, timedelta(days=400)) == NOW + timedelta(days=1)
