"""Where a webhook may go: one strict form of URL, and no address that isn't public, however it is written."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from taskpool.url_guard import Allowed, Target, check_addresses, is_public, parse_target

NOBODY = Allowed()


@pytest.mark.parametrize(
    ("url", "target", "authority"),
    [
        ("https://example.org", Target("https", "example.org", 443, "/"), "example.org"),
        ("HTTP://Example.ORG:80/a?b=c", Target("http", "example.org", 80, "/a?b=c"), "example.org"),
        ("https://example.org.:8443?x=1", Target("https", "example.org", 8443, "/?x=1"), "example.org:8443"),
        ("https://xn--bcher-kva.example/%20", Target("https", "xn--bcher-kva.example", 443, "/%20"), None),
        ("https://[2606:4700::1111]/", Target("https", "2606:4700::1111", 443, "/"), "[2606:4700::1111]"),
        ("http://8.8.8.8:8080/x", Target("http", "8.8.8.8", 8080, "/x"), "8.8.8.8:8080"),
    ],
)
def test_a_url_is_taken_apart(url: str, target: Target, authority: str | None) -> None:
    assert parse_target(url, NOBODY) == target
    assert authority is None or target.authority == authority


@pytest.mark.parametrize(
    ("url", "why"),
    [
        (None, "must be a URL"),
        ("", "must be an http or https URL"),
        ("ftp://example.org", "must be an http or https URL"),
        ("file:///etc/passwd", "must be an http or https URL"),
        ("//example.org/", "must be an http or https URL"),
        ("https://" + "a" * 2048, "at most 2,048"),
        ("https://user:secret@example.org/", "must not hold a user name or a password"),
        ("https://example.org@169.254.169.254/", "must not hold a user name or a password"),
        ("https://example.org/#part", "must not have a fragment"),
        ("https://example.org\\@127.0.0.1/", "must not hold a user name or a password"),
        ("https://example.org/\\x", "isn't a URL that can be sent to"),
        ("https://example.org/a b", "isn't a URL that can be sent to"),
        ("https://example.org/\r\nHost: x", "isn't a URL that can be sent to"),
        ("https://example.org/\n", "isn't a URL that can be sent to"),
        ("https://bücher.example/", "must be ASCII"),
        ("https://１２７.0.0.1/", "must be ASCII"),
        ("https:///path", "isn't a URL that can be sent to"),
        ("https://-a.example/", "isn't the name of a host"),
        ("https://a..example/", "isn't the name of a host"),
        ("https://example.org:0/", "the port 0 doesn't exist"),
        ("https://example.org:65536/", "the port 65536 doesn't exist"),
        ("https://example.org:25/", "the port must be 80, 443 or from 1024 up, not 25"),
        ("https://8.8.8.8:22/", "the port must be 80, 443 or from 1024 up, not 22"),
        ("http://localhost:8080/", "must not lead to this machine"),
        ("http://a.LOCALHOST./", "must not lead to this machine"),
    ],
)
def test_a_url_that_cannot_be_sent_to_is_refused_with_a_reason(url: object, why: str) -> None:
    with pytest.raises(ValueError, match=r".") as refused:
        parse_target(url, NOBODY)

    assert why in str(refused.value)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    "host",
    ["2130706433", "0x7f000001", "0x7f.0.0.1", "0177.0.0.1", "127.1", "127.0.0.1.", "017700000001", "0x", "1.2.3.4.5",
     "256.1.1.1", "00000127.0.0.1", "127.0.1"],
)  # fmt: skip
def test_an_address_in_another_notation_is_no_way_round(host: str) -> None:
    with pytest.raises(ValueError, match=r"isn't an address in its usual form|isn't public"):
        parse_target(f"http://{host}/", NOBODY)


NOT_PUBLIC = [
    "0.0.0.0", "10.1.2.3", "100.64.0.1", "127.0.0.1", "127.255.255.254", "168.63.129.16", "169.254.169.254",
    "172.16.0.1", "192.0.0.8", "192.0.2.1", "192.88.99.1", "192.168.1.1", "198.18.0.1", "203.0.113.9", "224.0.0.1",
    "240.0.0.1", "255.255.255.255",
    "::", "::1", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:a9fe:a9fe", "::ffff:0:127.0.0.1", "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "100::1", "2001::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    "2001:db8::1", "2002:7f00:1::1", "2002:a9fe:a9fe::", "2606:4700::5efe:10.0.0.1", "3fff::1", "5f00::1",
    "fc00::1", "fd00:ec2::254", "fe80::1", "fec0::1", "ff02::1", "ff0e::1",
]  # fmt: skip


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_an_address_that_is_not_public_is_refused_as_a_host_and_as_what_a_host_resolves_to(address: str) -> None:
    host = f"[{address}]" if ":" in address else address
    target = parse_target("https://hooks.example/", NOBODY)

    with pytest.raises(ValueError, match="isn't public"):
        parse_target(f"http://{host}/", NOBODY)
    with pytest.raises(ValueError, match="an address that isn't public") as refused:
        check_addresses(target, [ip_address("8.8.8.8"), ip_address(address)], NOBODY)

    assert address not in str(refused.value)


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1"]
)
def test_a_public_address_is_let_through(address: str) -> None:
    assert is_public(ip_address(address))
    check_addresses(Target("https", "hooks.example", 443, "/"), [ip_address(address)], NOBODY)


@pytest.mark.parametrize(
    "url", ["http://hooks.internal:25/", "http://10.1.2.3:25/", "http://[::ffff:10.1.2.3]/", "http://localhost/"]
)
def test_what_the_operator_names_may_be_reached(url: str) -> None:
    allowed = Allowed(["hooks.internal", "10.0.0.0/8", "localhost"])
    target = parse_target(url, allowed)

    check_addresses(target, [ip_address("10.1.2.3")], allowed)

    with pytest.raises(ValueError, match=r"."):
        parse_target("http://10.1.2.3/", NOBODY)


def test_the_rule_on_ports_holds_for_a_name_that_is_not_listed_itself() -> None:
    with pytest.raises(ValueError, match="the port must be 80, 443 or from 1024 up"):
        parse_target("http://hooks.example:25/", Allowed(["10.0.0.0/8"]))


def test_a_name_may_resolve_into_an_allowed_network_and_not_beside_it() -> None:
    allowed = Allowed(["10.0.0.0/8"])
    target = parse_target("https://hooks.example/", allowed)

    check_addresses(target, [ip_address("10.1.2.3"), ip_address("8.8.8.8"), ip_address("::ffff:10.9.9.9")], allowed)

    with pytest.raises(ValueError, match="isn't public"):
        check_addresses(target, [ip_address("10.1.2.3"), ip_address("192.168.0.1")], allowed)
