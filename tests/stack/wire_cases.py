"""Raw requests that two servers could read in two ways, and what the edge makes of each: the table behind docs/edge.md."""

from __future__ import annotations

MAX_BODY_BYTES = 65_536
GET = b"GET /v1/models HTTP/1.1\r\nhost: edge\r\n"
POST = b"POST /chat HTTP/1.1\r\nhost: edge\r\n"
CHUNKED = POST + b"transfer-encoding: chunked\r\n\r\n"
HIDDEN = b"GET /v1/models/hidden HTTP/1.1\r\nhost: edge\r\n\r\n"


def _coded(header: bytes) -> bytes:
    return POST + header + b"\r\n\r\n4\r\n{  }\r\n0\r\n\r\n"


def _long(header: bytes) -> bytes:
    return POST + header + b"\r\n\r\n{}"


def _target(target: bytes) -> bytes:
    return b"GET " + target + b" HTTP/1.1\r\nhost: edge\r\n\r\n"


def _host(host: bytes) -> bytes:
    return b"GET /v1/models HTTP/1.1\r\nhost: " + host + b"\r\n\r\n"


REFUSED: dict[str, tuple[bytes, int]] = {
    "length then chunks": (_coded(b"content-length: 6\r\ntransfer-encoding: chunked"), 400),
    "chunks then length": (_coded(b"transfer-encoding: chunked\r\ncontent-length: 4"), 400),
    **{
        f"coding {name!r}": (_coded(b"transfer-encoding: " + name), 501)
        for name in (
            b"xchunked",
            b"identity",
            b"chunked, identity",
            b"identity, chunked",
            b"gzip, chunked",
            b"chunked,",
            b"chunked;q=1",
            b'"chunked"',
            b"",
            b"chunked\r\ntransfer-encoding: chunked",
            b"chunked\r\ntransfer-encoding: identity",
            b"identity\r\ntransfer-encoding: chunked",
        )
    },
    **{
        f"coding header {line!r}": (_coded(line), 400)
        for line in (
            b"transfer-encoding : chunked",
            b"transfer-encoding\t: chunked",
            b"transfer-encoding: \x0bchunked",
            b"transfer_encoding: chunked",
        )
    },
    **{
        f"length {value!r}": (_long(b"content-length: " + value), 400)
        for value in (
            b"+2",
            b"-2",
            b"0x2",
            b"2.0",
            b"2 2",
            b"2, 2",
            b"",
            b"99999999999999999999999",
            b"18446744073709551618",
            b"2\r\ncontent-length: 2",
            b"2\r\ncontent-length: 3",
        )
    },
    **{
        f"chunks {body!r}": (CHUNKED + body + b"\r\n0\r\n\r\n", 400)
        for body in (
            b" 4\r\n{  }",
            b"0x4\r\n{  }",
            b"+4\r\n{  }",
            b"-4\r\n{  }",
            b"\r\n{  }",
            b"10000000000000004\r\n{  }",
            b"4\n{  }",
            b"4\r{  }",
            b"4\rx{  }",
            b"4;a\nb\r\n{  }",
            b"2\r\n{  }",
            b"4\r\n{  }\n0\r\n",
        )
    },
    "chunk without an end": (CHUNKED + b"4\r\n{  }0\r\n\r\n", 400),
    "chunk of 2**64 - 1": (CHUNKED + b"ffffffffffffffff\r\n" + b"x" * (MAX_BODY_BYTES + 1), 413),
    "trailer without a colon": (CHUNKED + b"4\r\n{  }\r\n0\r\nfoo\r\n\r\n", 400),
    "large trailer": (CHUNKED + b"4\r\n{  }\r\n0\r\nx-a: " + b"a" * 40_000 + b"\r\n\r\n", 431),
    **{
        f"header {line!r}": (GET + line + b"\r\n\r\n", 400)
        for line in (
            b"x-a: a\0b",
            b"x-a: a\x01b",
            b"x-a: a\x7fb",
            b"x\0a: b",
            b"x\x01a: b",
            b"x\xe9: b",
            b"x a: b",
            b"x-a : b",
            b"xab",
            b": b",
            b"x(a: b",
            b"x_client_id: root",
            b":path: /drain",
            b"host: edge",
            b"host: other",
        )
    },
    "long header name": (GET + b"x-" + b"a" * 40_000 + b": 1\r\n\r\n", 431),
    "first header folded": (b"POST /chat HTTP/1.1\r\n host: edge\r\n\r\n", 400),
    "lines ended by CR": (GET.replace(b"\r\n", b"\r") + b"\r", 400),
    **{
        f"host {host!r}": (_host(host), 400)
        for host in (b"", b"a,b", b"a b", b"a@b", b"a/b", b"a?b", b"a\\b", b"a:port", b"a%2fb", b"\xe9")
    },
    "absolute form, comma": (_target(b"http://a,b/v1/models"), 400),
    "absolute form, ftp": (_target(b"ftp://edge/v1/models"), 400),
    "absolute form, https": (_target(b"https://edge/v1/models"), 403),
    "absolute form, inner path": (_target(b"http://edge/drain"), 404),
    **{
        f"path {path!r}": (_target(path), 404)
        for path in (
            b"/v1/../drain",
            b"/v1/models/x/../../../drain",
            b"/v1/models/%2e%2e/%2E%2E/drain",
            b"/v1/models/..\\..\\drain",
            b"/%64rain",
            b"/v1/models/..;/..;/drain",
            b"/v1/models;x=1",
            b"//evil/v1/models",
            b"/V1/MODELS",
        )
    },
    **{
        f"path {path!r}": (_target(path), 400)
        for path in (
            b"/v1/models/..%2f..%2fdrain",
            b"/v1/models/a%2F..",
            b"/v1/models/..%5c..%5cdrain",
            b"/docs/..%2f..%2fdrain",
            b"/v1/models#a",
            b"/v1/models/a#/../../drain",
            b"/v1/models/%00",
            b"/v1/models/\xe9",
            b"/v1/models/\x01",
            b"",
            b"v1/models",
            b"/v1/models /x",
        )
    },
    **{
        f"request line {line!r}": (line + b"\r\nhost: edge\r\n\r\n", 400)
        for line in (
            b" GET /v1/models HTTP/1.1",
            b"GET /v1/models HTTP/1.1 x",
            b"get /v1/models HTTP/1.1",
            b"GET /v1/models http/1.1",
            b"GET /v1/models HTTP/1.10",
            b"GET /v1/models HTTP/01.1",
            b"CONNECT /v1/models HTTP/1.1",
            b"G" * 9000 + b" /v1/models HTTP/1.1",
        )
    },
    "TRACE": (b"TRACE /v1/models HTTP/1.1\r\nhost: edge\r\n\r\n", 405),
    "CONNECT": (b"CONNECT edge:80 HTTP/1.1\r\nhost: edge\r\n\r\n", 404),
    "upgrade to TLS": (GET + b"connection: upgrade\r\nupgrade: TLS/1.0\r\n\r\n", 403),
    **{f"connection: {name}": (GET + b"connection: " + name.encode() + b"\r\n\r\n", 400) for name in ("host", "x-forwarded-for", ":path")},
}

MODELS = "GET /v1/models @edge"
CHAT = "POST /chat @edge [2] {}"
CHUNKS = "POST /chat @edge [chunked] {  }"
ACCEPTED: dict[str, tuple[bytes, list[str]]] = {
    "chunks": (_coded(b"transfer-encoding: chunked"), [CHUNKS]),
    "coding after a tab": (_coded(b"transfer-encoding:\tchunked"), [CHUNKS]),
    "coding in capitals": (_coded(b"TRANSFER-ENCODING: CHUNKED"), [CHUNKS]),
    "coding in a fold": (_coded(b"transfer-encoding:\r\n chunked"), [CHUNKS]),
    "coding called hop-by-hop": (_coded(b"transfer-encoding: chunked\r\nconnection: transfer-encoding"), [CHUNKS]),
    "coding hidden in a fold": (
        _long(b"x-a: b\r\n transfer-encoding: chunked\r\ncontent-length: 2"),
        ["POST /chat @edge [2] x-a=b transfer-encoding: chunked {}"],
    ),
    "length in a fold": (_long(b"content-length:\r\n 2"), [CHAT]),
    "length with zeros": (_long(b"content-length: 002"), ["POST /chat @edge [002] {}"]),
    "length called hop-by-hop": (_long(b"content-length: 2\r\nconnection: content-length"), ["POST /chat @edge [chunked] {}"]),
    "no length": (POST + b"\r\n", ["POST /chat @edge [0]"]),
    "chunk extensions": (CHUNKED + b'4;a="b"\r\n{  }\r\n0;x\r\n\r\n', [CHUNKS]),
    "chunk extension with an open quote": (CHUNKED + b'4;a="\r\n{  }\r\n0\r\n\r\n', [CHUNKS]),
    "chunk sizes with zeros and spaces": (CHUNKED + b"0004 \r\n{  }\r\n000\r\n\r\n", [CHUNKS]),
    "trailers": (CHUNKED + b"4\r\n{  }\r\n0\r\nx-client-id: root\r\nhost: evil\r\ncontent-length: 5\r\n\r\n", [CHUNKS]),
    "a request in a body": (
        POST + b"content-length: %d\r\n\r\n" % len(HIDDEN) + HIDDEN,
        [f"POST /chat @edge [{len(HIDDEN)}] {HIDDEN.decode()}"],
    ),
    "a request in the body of a GET": (
        GET + b"content-length: %d\r\n\r\n" % len(HIDDEN) + HIDDEN,
        [f"{MODELS} [{len(HIDDEN)}] {HIDDEN.decode()}"],
    ),
    "a request in a chunk": (
        CHUNKED + b"%x\r\n" % len(HIDDEN) + HIDDEN + b"\r\n0\r\n\r\n",
        [f"POST /chat @edge [chunked] {HIDDEN.decode()}"],
    ),
    "a request behind a POST without a length": (POST + b"\r\n" + HIDDEN, ["POST /chat @edge [0]", "GET /v1/models/hidden @edge"]),
    "pipelined": (GET + b"\r\n" + HIDDEN + _coded(b"transfer-encoding: chunked"), [MODELS, "GET /v1/models/hidden @edge", CHUNKS]),
    "HEAD with a body": (b"HEAD" + GET[3:] + b"content-length: 2\r\n\r\n{}", ["HEAD /v1/models @edge [2] {}"]),
    "lines ended by LF": (POST.replace(b"\r\n", b"\n") + b"content-length: 2\n\n{}", [CHAT]),
    "header behind an LF": (_long(b"x-a: b\nx-client-id: root\r\ncontent-length: 2"), ["POST /chat @edge [2] x-a=b {}"]),
    "header behind a CR": (_long(b"x-a: b\rx-client-id: root\r\ncontent-length: 2"), ["POST /chat @edge [2] x-a=bx-client-id: root {}"]),
    "header folded": (_long(b"x-a: b\r\n c\r\ncontent-length: 2"), ["POST /chat @edge [2] x-a=b c {}"]),
    "two hosts, absolute form": (b"GET http://edge/v1/models HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", [MODELS]),
    "absolute form, other host": (_target(b"http://other/v1/models"), ["GET /v1/models @other"]),
    "absolute form, userinfo": (_target(b"http://user:word@edge/v1/models"), [MODELS]),
    "host as an address": (_host(b"[::1]:8000"), ["GET /v1/models @[::1]:8000"]),
    **{
        f"path {path!r}": (_target(path), [MODELS])
        for path in (b"//v1//models", b"/v1/./models", b"/x/../v1/models", b"/v1\\models", b"/v1/%6dodels")
    },
    "dots in a query": (_target(b"/v1/models?a=/../drain"), ["GET /v1/models?a=/../drain @edge"]),
    "dots escaped twice": (_target(b"/v1/models/%252e%252e/a"), ["GET /v1/models/%252e%252e/a @edge"]),
    "dots in an id": (_target(b"/v1/models/a..b%2f.c"), ["GET /v1/models/a..b%2f.c @edge"]),
    **{
        f"request line {line!r}": (line + b"\r\nhost: edge\r\n\r\n", [MODELS])
        for line in (
            b"GET  /v1/models  HTTP/1.1",
            b"GET\t/v1/models\tHTTP/1.1",
            b"GET /v1/models HTTP/1.1 ",
            b"\r\n\r\nGET /v1/models HTTP/1.1",
        )
    },
    "upgrade to h2c": (GET + b"connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n\r\n", [MODELS]),
    "headers of the edge called hop-by-hop": (GET + b"connection: x-client-id, x-client-role, x-request-id, traceparent\r\n\r\n", [MODELS]),
    "own header called hop-by-hop": (GET + b"connection: x-a, authorization\r\nx-a: 1\r\nauthorization: Bearer 1\r\n\r\n", [MODELS]),
    "expects 100": (_long(b"expect: 100-continue\r\ncontent-length: 2"), [CHAT]),
    "expects 100, no body": (GET + b"expect: 100-continue\r\n\r\n", [MODELS]),
}

OLD: dict[str, bytes] = {
    "HTTP/0.9": b"GET /v1/models\r\n",
    "HTTP/1.0": b"GET /v1/models HTTP/1.0\r\nhost: edge\r\n\r\n",
    "HTTP/1.2": b"GET /v1/models HTTP/1.2\r\nhost: edge\r\n\r\n",
    "HTTP/2.0": b"GET /v1/models HTTP/2.0\r\nhost: edge\r\n\r\n",
    "HTTP/1.0, chunks": b"GET /v1/models HTTP/1.0\r\nhost: edge\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
}
"""Answered, and the connection ends: what follows is not read as a request."""
