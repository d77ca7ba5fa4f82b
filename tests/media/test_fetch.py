"""Pictures by address: what is opened, what is not, and that callers cannot lead the server inside."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import trustme

from cache_dit_serving.config.settings import InputSettings
from cache_dit_serving.errors import InvalidRequest
from cache_dit_serving.media.fetch import fetch
from cache_dit_serving.media.outgoing import is_listed, is_open

IMAGE = b"a picture, as far as fetching goes"


class Files(BaseHTTPRequestHandler):
    """Answers by the path; notes the `Host` of each request."""

    hosts: list[str]

    def do_GET(self) -> None:
        self.hosts.append(self.headers["Host"])
        getattr(self, f"give_{self.path.split('?')[0].strip('/')}")()

    def give(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def give_picture(self) -> None:
        self.give(200, IMAGE, Content_Length=str(len(IMAGE)))

    def give_missing(self) -> None:
        self.give(404, b"secret of the inside")

    def give_large(self) -> None:
        self.give(200, b"x" * 10_000)  # to the end of the connection, without a length

    def give_packed(self) -> None:
        self.give(200, b"\x1f\x8b", Content_Encoding="gzip")

    def give_slow(self) -> None:
        self.send_response(200)
        self.end_headers()
        for _ in range(20):
            self.wfile.write(b"x")
            time.sleep(0.1)

    def give_nearby(self) -> None:
        self.give(302, Location="/picture")

    def give_loop(self) -> None:
        self.give(302, Location="/loop")

    def give_elsewhere(self) -> None:
        self.give(302, Location="http://169.254.169.254/latest/meta-data")

    def give_file(self) -> None:
        self.give(302, Location="file:///etc/passwd")

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def files() -> Iterator[tuple[int, list[str]]]:
    """A server's port, and the hosts it was asked for."""
    handler = type("Handler", (Files,), {"hosts": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port, handler.hosts  # type: ignore[attr-defined]
    server.shutdown()
    server.server_close()


def settings_for(port: int, **fields: Any) -> InputSettings:
    return InputSettings(
        **{
            "url_hosts": (f"127.0.0.1:{port}", f"pictures.example:{port}"),
            "url_networks": ("127.0.0.0/8",),
            "max_bytes": 5000,
            "fetch_s": 60,
        }
        | fields
    )


def refusal(url: str, settings: InputSettings) -> str:
    with pytest.raises(InvalidRequest) as caught:
        asyncio.run(fetch(url, settings, "image_urls.0"))
    assert caught.value.param == "image_urls.0"
    assert "secret" not in caught.value.message
    return caught.value.message


def test_a_picture_comes_from_a_listed_host(files: tuple[int, list[str]]) -> None:
    port, _ = files
    for path in ("picture", "picture?size=1#part", "nearby"):
        assert asyncio.run(fetch(f"http://127.0.0.1:{port}/{path}", settings_for(port), "p")) == IMAGE


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("missing", "answered 404"),
        ("large", "more than 5,000 bytes"),
        ("packed", "came compressed"),
        ("slow", "was not there after 1 s"),
        ("loop", "more than 3 redirects"),
        ("elsewhere", "on a host that this server does not open"),
        ("file", "is not an http or https address"),
        ("x" * 3000, "more than 2,048 characters"),
    ],
)
def test_what_is_no_picture_in_time_is_refused(files: tuple[int, list[str]], path: str, words: str) -> None:
    port, _ = files
    settings = settings_for(port, fetch_s=1) if path == "slow" else settings_for(port)
    assert words in refusal(f"http://127.0.0.1:{port}/{path}", settings)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/",
        "http://127.0.0.1:{port}/picture",
        "http://[::1]:{port}/picture",
        "http://0x7f.1:{port}/picture",
        "http://2130706433:{port}/picture",
        "http://169.254.169.254/latest/meta-data",
        "http://localhost:{port}/picture",
        "https://metadata.google.internal/",
        "http:///picture",
        "http://",
        "http://exa mple/",
        "http://\u0000/",
        "http://[::1/",
        "http://a:99999/",
    ],
)
def test_without_a_list_nothing_is_opened(files: tuple[int, list[str]], url: str) -> None:
    port, hosts = files
    before = len(hosts)
    message = refusal(url.format(port=port), InputSettings())
    assert "does not open" in message or "could not be fetched" in message
    assert len(hosts) == before


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0"])
def test_a_listed_host_at_an_address_inside_is_refused(files: tuple[int, list[str]], host: str) -> None:
    port, hosts = files
    before = len(hosts)
    listed = InputSettings(url_hosts=(f"{host}:{port}",))
    assert "not public" in refusal(f"http://{host}:{port}/picture", listed)
    assert len(hosts) == before


def resolving(monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> list[str]:
    """Names resolve to these addresses, one list at a time; the names that were asked for."""
    asked: list[str] = []
    waiting = list(answers)

    async def getaddrinfo(self: object, host: str, port: int, **options: object) -> list[Any]:
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in waiting.pop(0)]

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", getaddrinfo)
    return asked


def test_a_name_is_resolved_once_and_that_address_dialled(
    files: tuple[int, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    port, hosts = files
    # A second look at the name would find another address, and one at 127.0.0.1 asks for nothing.
    asked = resolving(monkeypatch, ["127.0.0.1"], *[["127.0.0.1"]] * 5)
    url = f"http://pictures.example:{port}/picture"
    assert asyncio.run(fetch(url, settings_for(port), "p")) == IMAGE
    assert asked.count("pictures.example") == 1
    assert hosts[-1] == f"pictures.example:{port}"


@pytest.mark.parametrize(
    "addresses", [["10.0.0.1"], ["93.184.215.14", "10.0.0.1"], ["169.254.169.254"], ["::ffff:10.0.0.1"], []]
)
def test_a_name_with_any_address_inside_is_refused(addresses: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    resolving(monkeypatch, addresses)
    assert "not public" in refusal("http://pictures.example/a.png", InputSettings(url_hosts=("pictures.example",)))


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.mark.parametrize(
    ("name", "trusted", "expected"),
    [("pictures.example", True, IMAGE), ("other.example", True, None), ("pictures.example", False, None)],
)
def test_https_is_for_the_name_not_the_address(
    authority: trustme.CA, name: str, trusted: bool, expected: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler = type("Handler", (Files,), {"hosts": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    (authority if trusted else trustme.CA()).issue_cert(name).configure_cert(context)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    port = server.server_port
    resolving(monkeypatch, *[["127.0.0.1"]] * 4)
    url = f"https://pictures.example:{port}/picture"
    try:
        with authority.cert_pem.tempfile() as trusted_file:
            monkeypatch.setattr("certifi.where", lambda: trusted_file)
            if expected is None:
                assert "could not be fetched" in refusal(url, settings_for(port))
            else:
                assert asyncio.run(fetch(url, settings_for(port), "p")) == expected
    finally:
        server.shutdown()
        server.server_close()


def test_a_users_name_is_refused() -> None:
    listed = InputSettings(url_hosts=("pictures.example",))
    assert "user's name" in refusal("http://pictures.example@10.0.0.1/", listed)
    assert "user's name" in refusal("http://me:secret@pictures.example/", listed)


@pytest.mark.parametrize(
    ("host", "port", "listed", "expected"),
    [
        ("cdn.example.org", 443, ("cdn.example.org",), True),
        ("CDN.example.org.", 443, ("cdn.example.org",), True),
        ("cdn.example.org", 8443, ("cdn.example.org",), False),
        ("cdn.example.org", 8443, ("cdn.example.org:8443",), True),
        ("cdn.example.org", 443, ("cdn.example.org:8443",), False),
        ("a.b.example.org", 443, ("*.example.org",), True),
        ("example.org", 443, ("*.example.org",), False),
        ("badexample.org", 443, ("*.example.org", "example.org"), False),
        ("example.org.evil.net", 443, ("example.org", "*.example.org"), False),
        ("anything", 443, (), False),
    ],
)
def test_a_host_is_listed_by_its_name_and_port(host: str, port: int, listed: tuple[str, ...], expected: bool) -> None:
    assert is_listed(host, port, port == 443, listed) is expected


@pytest.mark.parametrize(
    "address",
    [
        *(
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "127.0.0.1",
            "169.254.169.254",
            "172.16.0.1",
            "192.168.1.1",
            "224.0.0.1",
        ),
        *("255.255.255.255", "::", "::1", "fe80::1", "fc00::1", "ff02::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1"),
        *("2002:7f00:1::", "2001:0:0:0:0:0:80ff:fffe", "192.0.2.1", "2001:db8::1"),
        *("::127.0.0.1", "::10.1.2.3", "::ffff:0:127.0.0.1", "64:ff9b:1::7f00:1", "fec0::1", "5f00::1", "4000::1"),
    ],
)
def test_no_address_inside_is_open(address: str) -> None:
    assert not is_open(ipaddress.ip_address(address), ())


@pytest.mark.parametrize("address", ["93.184.215.14", "2606:2800:21f:cb07:6820:80da:af6b:8b2c", "64:ff9b::5db8:d70e"])
def test_public_addresses_are_open(address: str) -> None:
    assert is_open(ipaddress.ip_address(address), ())


def test_the_operators_networks_are_open_and_no_others() -> None:
    assert is_open(ipaddress.ip_address("10.1.2.3"), ("10.1.0.0/16",))
    assert not is_open(ipaddress.ip_address("10.2.2.3"), ("10.1.0.0/16",))
