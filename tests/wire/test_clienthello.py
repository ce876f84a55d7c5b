"""`fwdrelay.wire.clienthello`: real hellos, made ones, broken ones."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st
from OpenSSL import SSL

from fuzz.corpus import corpus
from fuzz.targets import asked_of_openssl, check_against_openssl, check_hello, check_name
from fwdrelay.wire.clienthello import (
    LONGEST,
    ClientHello,
    HelloReader,
    NotClientHello,
    host_name,
    parse,
)
from tests.case import SynchronousTestCase
from tests.scenarios.programs import folder, skip_unless_installed
from tests.wire.hellos import (
    alpn,
    caught,
    extension,
    from_openssl,
    message,
    payload,
    records,
    server_name,
    versions,
    with_length,
)

FEW = settings(max_examples=50, deadline=None)
ALL = ("TLSv1.3", "TLSv1.2", "TLSv1.1", "TLSv1")
CAPTURED = {
    "chromium": ClientHello(
        "www.example.com", ("h2", "http/1.1"), ("TLSv1.3", "TLSv1.2"), encrypted=True
    ),
    "curl": ClientHello("curl.example.com", ("h2", "http/1.1"), ALL, encrypted=False),
    "curl-tls1.2": ClientHello("curl.example.com", ("http/1.1",), ("TLSv1.2",), encrypted=False),
    "pyopenssl": ClientHello(
        "www.example.com", ("h2", "http/1.1"), ("TLSv1.3", "TLSv1.2"), encrypted=False
    ),
    "s_client": ClientHello("s-client.example.com", ("h2", "imap"), ALL, encrypted=False),
    "s_client-tls1.0": ClientHello(None, (), ("TLSv1",), encrypted=False),
}
NOTHING = ClientHello(None, (), ("TLSv1.2",), encrypted=False)


def hello(extensions: bytes) -> ClientHello:
    """What is read from a hello with these."""
    found = parse(records(message(extensions)))
    assert found is not None
    return found


def byte_by_byte(data: bytes) -> tuple[ClientHello | None, int]:
    """What is read in the end, and with how many bytes."""
    reader = HelloReader()
    for size in range(len(data) + 1):
        found = reader.parse(data[:size])
        assert found == parse(data[:size]), size
        if found is not None:
            return found, size
    return None, len(data)


class CapturedTests(SynchronousTestCase):
    """What programs have sent, from files."""

    def test_each_is_read(self) -> None:
        self.assertEqual({name: parse(data) for name, data in corpus("hellos").items()}, CAPTURED)

    def test_each_is_read_with_its_last_byte_and_not_before(self) -> None:
        for name, data in corpus("hellos").items():
            self.assertEqual(byte_by_byte(data), (CAPTURED[name], len(data)), name)

    def test_what_follows_does_not_matter(self) -> None:
        for name, data in corpus("hellos").items():
            for more in (b"\0", b"GET / HTTP/1.1\r\n", data, bytes(100_000)):
                self.assertEqual(parse(data + more), CAPTURED[name], name)

    def test_records_of_one_byte_each(self) -> None:
        for name, data in corpus("hellos").items():
            inside = payload(data)
            cut = records(inside, [1] * len(inside))
            self.assertEqual(len(cut), 6 * len(inside))
            self.assertEqual(parse(cut), CAPTURED[name])
            self.assertIsNone(parse(cut[:-1]))

    def test_records_of_one_byte_each_byte_by_byte(self) -> None:
        inside = payload(corpus("hellos")["s_client-tls1.0"])
        cut = records(inside, [1] * len(inside))
        self.assertEqual(byte_by_byte(cut), (CAPTURED["s_client-tls1.0"], len(cut)))

    @FEW
    @given(st.lists(st.integers(1, 700), max_size=20), st.integers(0, 4))
    def test_records_cut_anywhere(self, sizes: list[int], version: int) -> None:
        inside = payload(corpus("hellos")["chromium"])
        cut = records(inside, sizes, version)
        self.assertEqual(parse(cut), CAPTURED["chromium"])
        self.assertIsNone(parse(cut[:-1]))


class LiveTests(SynchronousTestCase):
    """What programs that are here send now."""

    def test_openssl_with_names_and_protocols(self) -> None:
        found = parse(
            from_openssl(lambda each: each.set_alpn_protos([b"imap", b"h2"]), b"IMAP.Example.COM")
        )
        assert found is not None
        self.assertEqual((found.server_name, found.alpn), ("imap.example.com", ("imap", "h2")))
        self.assertEqual(found.versions[:2], ("TLSv1.3", "TLSv1.2"))

    def test_openssl_without_anything(self) -> None:
        found = parse(from_openssl())
        assert found is not None
        self.assertEqual((found.server_name, found.alpn, found.encrypted), (None, (), False))

    def test_openssl_with_one_version(self) -> None:
        for version, name in ((SSL.TLS1_2_VERSION, "TLSv1.2"), (SSL.TLS1_3_VERSION, "TLSv1.3")):

            def only(context: SSL.Context, version: int = version) -> None:
                context.set_min_proto_version(version)
                context.set_max_proto_version(version)

            found = parse(from_openssl(only))
            assert found is not None
            self.assertEqual(found.versions, (name,))

    def test_openssl_resuming_with_a_long_list_of_protocols(self) -> None:
        names = [b"protocol-%03d" % number for number in range(300)]
        data = from_openssl(lambda each: each.set_alpn_protos(names))
        self.assertGreater(len(data), 4000)
        found, size = byte_by_byte(data)
        assert found is not None
        self.assertEqual((found.alpn[0], len(found.alpn), size), ("protocol-000", 300, len(data)))

    def test_openssl_reads_the_same(self) -> None:
        for name, data in corpus("hellos").items():
            if name != "s_client-tls1.0":  # which it does not speak any more
                self.assertEqual(
                    check_against_openssl(data, random.Random(1)), "both, with protocols", name
                )

    def test_openssl_reads_the_same_in_other_records(self) -> None:
        inside = payload(corpus("hellos")["chromium"])
        asked = asked_of_openssl(records(inside, [3, 1, 1, 400, 1]))
        self.assertEqual(asked.server_name, b"www.example.com")

    def test_curl(self) -> None:
        skip_unless_installed("curl")
        data = caught(
            (
                *("curl", "-ksS", "--http1.1", "--connect-to", "::127.0.0.1:PORT"),
                "https://Curl.example.com/",
            )
        )
        found = parse(data)
        assert found is not None
        self.assertEqual((found.server_name, found.alpn), ("curl.example.com", ("http/1.1",)))
        self.assertIn("TLSv1.3", found.versions)

    def test_s_client(self) -> None:
        skip_unless_installed("openssl")
        common = ("openssl", "s_client", "-connect", "127.0.0.1:PORT")
        named = parse(caught((*common, "-servername", "a.example", "-alpn", "smtp", "-tls1_2")))
        self.assertEqual(named, ClientHello("a.example", ("smtp",), ("TLSv1.2",), encrypted=False))
        nameless = parse(caught((*common, "-noservername", "-tls1_3")))
        self.assertEqual(nameless, ClientHello(None, (), ("TLSv1.3",), encrypted=False))

    def test_chromium(self) -> None:
        skip_unless_installed("chromium")
        with folder() as profile:
            data = caught(
                (
                    *("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
                    *("--disable-background-networking", f"--user-data-dir={profile}"),
                    *("--host-resolver-rules=MAP * 127.0.0.1", "https://www.example.com:PORT/"),
                )
            )
        self.assertEqual(parse(data), CAPTURED["chromium"])
        self.assertEqual(byte_by_byte(data), (CAPTURED["chromium"], len(data)))
        self.has_what_browsers_have(data)

    def test_the_one_of_chromium_in_the_files_is_of_that_kind(self) -> None:
        self.has_what_browsers_have(corpus("hellos")["chromium"])

    def has_what_browsers_have(self, data: bytes) -> None:
        """GREASE, a post-quantum key, and what looks like ECH."""
        inside = payload(data)
        at = 38 + 1 + inside[38]
        at += 2 + int.from_bytes(inside[at : at + 2], "big")
        at += 1 + inside[at] + 2
        extensions = {}
        while at < len(inside):
            kind, size = (int.from_bytes(inside[at + i : at + i + 2], "big") for i in (0, 2))
            extensions[kind] = inside[at + 4 : at + 4 + size]
            at += 4 + size
        self.assertEqual(len([kind for kind in extensions if kind & 0x0F0F == 0x0A0A]), 2)
        self.assertIn(extensions[43][1] & 0x0F, (0x0A,))
        self.assertGreater(len(extensions[51]), 1184, "bytes of an ML-KEM-768 key")
        self.assertEqual(extensions[0xFE0D][0], 0)


class ValueTests(SynchronousTestCase):
    """What a hello says."""

    def test_nothing_at_all(self) -> None:
        self.assertEqual(parse(records(message(None))), NOTHING)
        self.assertEqual(hello(b""), NOTHING)

    def test_the_version_of_old_ones(self) -> None:
        for version, name in (
            (b"\3\0", "SSLv3"),
            (b"\3\1", "TLSv1"),
            (b"\3\2", "TLSv1.1"),
            (b"\3\3", "TLSv1.2"),
            # Only the extension can offer more.
            (b"\3\4", "TLSv1.2"),
            (b"\3\xff", "TLSv1.2"),
            (b"\x0a\x0a", "TLSv1.2"),
        ):
            found = parse(records(message(None, version=version)))
            assert found is not None
            self.assertEqual(found.versions, (name,))

    def test_offered_versions(self) -> None:
        found = hello(versions(0x2A2A, 0x304, 0x7F1C, 0x303, 0x302, 0x301, 0x300, 0x2A3A))
        self.assertEqual(found.versions, ("TLSv1.3", "0x7f1c", *ALL[1:], "SSLv3", "0x2a3a"))

    def test_a_session_id_and_many_suites(self) -> None:
        data = message(server_name(b"a.example"), session=bytes(32), suites=bytes(400))
        self.assertEqual(byte_by_byte(records(data))[0], ClientHello("a.example", *NOTHING_MORE))

    def test_protocols(self) -> None:
        found = hello(alpn(b"\x0a\x0a", b"h2", b"http/1.1", b"\xff\0", b"x" * 255, b"ab"))
        self.assertEqual(found.alpn, ("h2", "http/1.1", "\xff\0", "x" * 255, "ab"))

    def test_ech(self) -> None:
        name = server_name(b"outer.example")
        self.assertTrue(hello(name + extension(0xFE0D, b"\0anything")).encrypted)
        # The inner one, as a backend gets it, in which the name is the real one.
        self.assertFalse(hello(name + extension(0xFE0D, b"\1")).encrypted)
        self.assertFalse(hello(name).encrypted)

    def test_extensions_that_are_not_known_here(self) -> None:
        unknown = extension(0x0A0A, b"") + extension(65535, bytes(300)) + extension(51, b"\0\0")
        self.assertEqual(
            hello(unknown + server_name(b"a.example") + extension(0x1A1A, b"\0")),
            ClientHello("a.example", *NOTHING_MORE),
        )


NOTHING_MORE = ((), ("TLSv1.2",), False)


class NameTests(SynchronousTestCase):
    def test_names(self) -> None:
        for told, name in (
            (b"www.example.com", "www.example.com"),
            (b"WWW.Example.COM", "www.example.com"),
            (b"www.example.com.", "www.example.com"),
            (b"localhost", "localhost"),
            (b"xn--bcher-kva.example", "xn--bcher-kva.example"),
            (b"_sip.a_b.example", "_sip.a_b.example"),
            (b"3com.example", "3com.example"),
            (b"1.example.4u", "1.example.4u"),
            (b"a" * 63 + b".example", "a" * 63 + ".example"),
            (b".".join([b"a" * 49] * 5) + b".abc", ".".join(["a" * 49] * 5) + ".abc"),
        ):
            self.assertEqual(host_name(told), name)
            self.assertEqual(hello(server_name(told)).server_name, name)

    def test_what_no_host_is_called(self) -> None:
        for told in (
            *(
                b".",
                b"..",
                b".example",
                b"a..example",
                b"a.example..",
                b"-a.example",
                b"a-.example",
            ),
            *(b"a\0.example", b"a.example\0", b"\0", b"a b", b" a", b"a ", b"a\n", b"a.example\n"),
            *(
                b"b\xc3\xbccher.example",
                b"\xff",
                b"*.example",
                b"a/b",
                b"a:443",
                b"a,b",
                b'"',
                b"'",
            ),
            *(b"192.0.2.1", b"192.0.2.1.", b"127.1", b"1.2.3.4.5", b"2001:db8::1", b"[::1]", b"::"),
            b"a" * 64 + b".example",
            b".".join([b"a" * 49] * 5) + b".abcd",
            b"a." * 8000 + b"a",
        ):
            self.assertIsNone(host_name(told), told)
            if len(told) < 16000:
                self.assertIsNone(hello(server_name(told)).server_name, told)

    def test_no_name(self) -> None:
        self.assertIsNone(host_name(b""))

    @FEW
    @given(st.binary(max_size=300), st.randoms(use_true_random=False))
    def test_any_bytes(self, told: bytes, chance: random.Random) -> None:
        check_name(told, chance)

    @FEW
    @given(st.text("abcXYZ019-_.\0 é", max_size=80), st.randoms(use_true_random=False))
    def test_nearly_names(self, told: str, chance: random.Random) -> None:
        check_name(told.encode(), chance)


class NoHelloTests(SynchronousTestCase):
    """What is none, and how early and in which words that is told."""

    def refused(self, data: bytes, *words: str) -> None:
        """That it is, and that more bytes do not change that."""
        for more in (b"", b"\0", bytes(20_000)):
            with self.assertRaises(NotClientHello) as caught_error:
                parse(data + more)
            if not more:
                for word in words:
                    self.assertIn(word, str(caught_error.exception))

    def broken(self, data: bytes, *words: str) -> None:
        """That a whole message is refused, with its last byte at the latest."""
        self.refused(records(data), *words)
        self.refused(records(data, [1] * len(data)), *words)

    def test_nothing_yet(self) -> None:
        self.assertIsNone(parse(b""))

    def test_the_first_byte(self) -> None:
        for byte in set(range(256)) - {22}:
            self.refused(bytes((byte,)), f"first bytes are {byte:02x}", "16 03")

    def test_the_version_of_the_record(self) -> None:
        self.assertIsNone(parse(b"\x16"))
        self.refused(b"\x16\2", "16 02")
        self.refused(b"\x16\4")
        for minor in range(5):
            self.assertIsNone(parse(bytes((22, 3, minor))))
        self.refused(b"\x16\3\5", "16 03 05")
        self.refused(b"\x16\3\5\0\1\1")

    def test_other_protocols(self) -> None:
        for data, words in (
            (b"GET / HTTP/1.1\r\n\r\n", "looks like HTTP"),
            (b"CONNECT a.example:443 HTTP/1.1", "looks like HTTP"),
            (b"PRI * HTTP/2.0\r\n", "looks like HTTP"),
            (b"SSH-2.0-OpenSSH", "looks like SSH"),
            (b"PROXY TCP4 ", "looks like a PROXY header"),
            (b"\r\n\r\n\0\r\nQUIT\n\x21", "looks like a PROXY header"),
            (b"\x80\x2e\x01\x00\x02", "SSL 2"),
            (b"\x80\x2e\x01\x03\x01", "SSL 2"),
            (b"\x17\3\3\0\1", "17 03 03 00 01"),
            (b"EHLO example", "45 48 4c 4f 20"),
        ):
            self.refused(data, words)

    def test_an_empty_record(self) -> None:
        self.refused(b"\x16\3\1\0\0", "at byte 0", "holds 0 bytes")
        self.refused(b"\x16\3\1\0\2\1\0\x16\3\1\0\0", "at byte 7", "holds 0 bytes")

    def test_a_record_that_is_too_long(self) -> None:
        self.assertIsNone(parse(b"\x16\3\1\x40\0"))
        self.refused(b"\x16\3\1\x40\1", "holds 16385 bytes")

    def test_another_record_within(self) -> None:
        begun = records(message(server_name(b"a.example"))[:20])
        self.assertIsNone(parse(begun))
        for more in (b"\x15", b"\x16\2", b"\x16\3\5", b"\x15\3\1\0\2"):
            self.refused(begun + more, "at byte 25", "within the ClientHello")

    def test_another_message(self) -> None:
        self.assertIsNone(parse(b"\x16\3\1\0\5"))
        self.refused(b"\x16\3\1\0\5\2", "message 2")

    def test_a_message_that_is_too_short(self) -> None:
        self.assertIsNone(parse(b"\x16\3\1\0\5\1\0\0\x29"))
        self.refused(b"\x16\3\1\0\5\1\0\0\x28", "40 bytes", "41")

    def test_the_longest(self) -> None:
        room = LONGEST - len(records(message(extension(9, b""))))
        data = records(message(extension(9, bytes(room))))
        self.assertEqual(len(data), LONGEST)
        self.assertEqual(parse(data), NOTHING)
        self.assertIsNone(parse(data[:-1]))

    def test_one_that_is_too_long_is_refused_at_once(self) -> None:
        room = LONGEST - len(records(message(extension(9, b""))))
        data = records(message(extension(9, bytes(room + 1))))
        self.assertIsNone(parse(data[:8]))
        self.refused(data[:9], f"{LONGEST - 4} bytes", str(LONGEST))

    def test_one_that_is_too_long_for_its_records_is_refused_once_that_is_sure(self) -> None:
        inside = message(extension(9, bytes(10_000)))
        data = records(inside, [1] * len(inside))
        reader = HelloReader()
        first = next(
            size for size in range(LONGEST) if not self.more_is_wanted(reader, data[:size])
        )
        self.assertLess(first, LONGEST)
        self.refused(data[:first], "more than the 16384")

    def more_is_wanted(self, reader: HelloReader, data: bytes) -> bool:
        """False: it was refused."""
        try:
            self.assertIsNone(reader.parse(data))
        except NotClientHello:
            return False
        return True

    def test_what_is_beyond_the_longest_is_not_looked_at(self) -> None:
        inside = message(extension(9, bytes(2000)))
        data = records(inside, [1] * 2000) + bytes(10)
        self.assertEqual(parse(data), NOTHING)
        inside = message(extension(9, bytes(2700)))
        with self.assertRaises(NotClientHello):
            parse(records(inside, [1] * len(inside)))

    def test_ssl_2(self) -> None:
        self.broken(message(version=b"\2\0"), "SSL 2.0")

    def test_the_session_id(self) -> None:
        self.broken(message(session=bytes(33)), "session id", "33 bytes", "32 is the most")

    def test_the_suites(self) -> None:
        self.broken(message(bytes(2), suites=b""), "have 0 bytes")
        self.broken(message(suites=b"\x13\1\0"), "have 3 bytes")
        self.broken(self.with_length_at(message(), 39, b"\0\xff"), "within its cipher suites")
        data = message(None, suites=bytes(8))
        self.broken(self.with_length_at(data, 39, b"\0\x0a"), "within its cipher suites")
        # There is room for a session id that leaves none for their length.
        for size in (4, 5, 6):
            data = message(None, suites=bytes(2 * size))
            data = data[:38] + bytes((len(data) - 39 - (size - 4),)) + data[39:]
            self.broken(data, "within its cipher suites")

    def with_length_at(self, data: bytes, at: int, length: bytes) -> bytes:
        return data[:at] + length + data[at + len(length) :]

    def test_the_compressions(self) -> None:
        self.broken(message(compressions=b""), "no compression")
        self.broken(message(None, suites=bytes(4), compressions=b"")[:-1] + b"\2", "compressions")

    def test_the_extensions(self) -> None:
        whole = message(extension(9, b"\0\0"))
        self.broken(self.resized(whole + b"\0"), "should have 6 bytes, and 7 are there")
        self.broken(self.resized(whole[:-1]), "should have 6 bytes, and 5 are there")
        self.broken(self.resized(message(None) + b"\0"), "within its extensions")
        self.broken(message(extension(9, b"") + b"\0"), "within its last extension")
        self.broken(message(extension(9, b"") + b"\0\x0a\0"), "within its last extension")
        self.broken(message(extension(9, b"")[:-1] + b"\1"), "within its last extension")

    def resized(self, data: bytes) -> bytes:
        return data[:1] + with_length(data[4:], 3)

    def test_one_extension_twice(self) -> None:
        for twice in (server_name(b"a.example"), alpn(b"h2"), extension(0x3A3A, b"")):
            self.broken(message(twice + extension(9, b"") + twice), "twice")

    def test_the_server_name(self) -> None:
        one = b"\0" + with_length(b"a.example", 2)
        for value in (
            b"",
            b"\0\0",
            with_length(b"\0\0\0", 2),
            with_length(one + one, 2),
            with_length(one + b"\0", 2),
            with_length(one, 2) + b"\0",
            with_length(one, 2)[:-1],
            with_length(one[:-1], 2),
            with_length(b"\1" + one[1:], 2),
            with_length(b"\1\0\1x" + one, 2),
        ):
            self.broken(message(extension(0, value)), "server name", "not one host name")

    def test_the_protocols(self) -> None:
        for value in (b"", b"\0", b"\0\0", b"\0\1\0", b"\0\2\1h2", b"\0\4\2h2", b"\0\3\2h2\0"):
            self.broken(message(extension(16, value)), "ALPN", "not a list")
        self.broken(message(alpn(b"h2", b"")), "should have 0 bytes")
        self.broken(message(extension(16, b"\0\4\2h2\5")), "should have 5 bytes, and has 0")
        self.broken(message(extension(16, b"\0\4\2h2\5"[:4] + b"\3")), "ALPN")

    def test_the_versions(self) -> None:
        for value in (b"", b"\0", b"\1\3", b"\2\3", b"\2\3\4\3", b"\4\3\4", b"\3\3\4\3"):
            self.broken(message(extension(43, value)), "supported versions")

    def test_ech(self) -> None:
        for value in (b"", b"\1\0", b"\2", b"\2\0\0"):
            self.broken(message(extension(0xFE0D, value)), "ECH", "neither")


class AnyBytesTests(SynchronousTestCase):
    @FEW
    @given(st.binary(max_size=400), st.randoms(use_true_random=False))
    def test_any_bytes(self, data: bytes, chance: random.Random) -> None:
        check_hello(data, chance)

    @FEW
    @given(st.binary(max_size=200), st.randoms(use_true_random=False))
    def test_any_message(self, data: bytes, chance: random.Random) -> None:
        check_hello(records(b"\1" + with_length(data, 3), [30]), chance)

    @FEW
    @given(st.binary(max_size=200), st.randoms(use_true_random=False))
    def test_any_extensions(self, data: bytes, chance: random.Random) -> None:
        check_hello(records(message(data)), chance)

    @FEW
    @given(
        st.lists(st.tuples(st.sampled_from((0, 10, 16, 43, 0xFE0D)), st.binary(max_size=20))),
        st.randoms(use_true_random=False),
    )
    def test_any_values(self, values: list[tuple[int, bytes]], chance: random.Random) -> None:
        check_hello(records(message(b"".join(extension(*each) for each in values))), chance)

    @FEW
    @given(
        st.lists(st.from_regex(r"[a-z0-9]{1,20}(\.[a-z]{1,9}){1,3}", fullmatch=True), max_size=1),
        st.lists(st.binary(min_size=3, max_size=255), max_size=5),
        st.lists(st.integers(1, 60), max_size=30),
        st.randoms(use_true_random=False),
    )
    def test_what_is_said_is_read(
        self, names: list[str], protocols: list[bytes], sizes: list[int], chance: random.Random
    ) -> None:
        extensions = [server_name(name.encode()) for name in names]
        extensions += [alpn(*protocols)] if protocols else []
        chance.shuffle(extensions)
        data = records(message(b"".join(extensions)), sizes)
        found = parse(data)
        assert found is not None
        self.assertEqual(found.server_name, names[0] if names else None)
        self.assertEqual(found.alpn, tuple(each.decode("latin-1") for each in protocols))
        check_hello(data, chance)
