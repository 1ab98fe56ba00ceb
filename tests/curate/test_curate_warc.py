"""The WARC reader on archives made here: members, spans, damage, bombs, ARC, other containers."""

from __future__ import annotations

import gzip
import importlib
import io
import random
import tracemalloc
import zlib

import pytest
import zstandard

from gristmill.curate.warc import Damage, Limits, Page, Record, Skip, page_of, read_records

LIMITS = Limits()


def record(
    url: str, block: bytes, kind: str = "response", size: int | None = None, extra: str = "", end: str = "\r\n"
) -> bytes:
    fields = [
        "WARC/1.0",
        f"WARC-Type: {kind}",
        f"WARC-Target-URI: {url}",
        "WARC-Date: 2024-01-02T03:04:05Z",
        f"WARC-Record-ID: <urn:uuid:{zlib.crc32(url.encode()):08x}>",
        *([extra] if extra else []),
        f"Content-Length: {len(block) if size is None else size}",
        "",
        "",
    ]
    return end.join(fields).encode() + block + end.encode() * 2


def response(html: str, head: str = "HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n") -> bytes:
    return head.encode() + b"\r\n" + html.encode()


def page(n: int) -> bytes:
    return record(f"http://site/{n}", response(f"<html><p>page {n} {'word ' * n}</p></html>"))


def read(data: bytes, limits: Limits = LIMITS) -> list[Record | Damage]:
    rows = list(read_records(io.BytesIO(data), "x.warc.gz", limits))
    places = [(r.offset, r.inner) for r in rows]
    assert places == sorted(set(places)), "file order, and no place twice"
    return rows


def urls(rows: list[Record | Damage]) -> list[str]:
    return [r.url if isinstance(r, Record) else r.reason for r in rows]


def noise(n: int) -> bytes:
    return random.Random(1).randbytes(n)


def test_member_per_record_gives_ranges_that_gunzip() -> None:
    members = [gzip.compress(page(i)) for i in range(5)]
    data = b"".join(members)
    rows = read(data)
    assert [r.offset for r in rows] == [sum(map(len, members[:i])) for i in range(5)]
    assert [r.length for r in rows] == [len(m) for m in members]
    for i, r in enumerate(rows):
        assert isinstance(r, Record)
        assert gzip.decompress(data[r.offset : r.offset + r.length]) == page(i)
        assert (r.kind, r.url, r.date, r.inner, r.truncated) == (
            "response",
            f"http://site/{i}",
            "2024-01-02T03:04:05Z",
            0,
            False,
        )
        assert r.record_id == f"urn:uuid:{zlib.crc32(r.url.encode()):08x}"


def test_many_records_in_one_member() -> None:
    data = gzip.compress(b"".join(page(i) for i in range(4))) + gzip.compress(page(4))
    rows = read(data)
    assert urls(rows) == [f"http://site/{i}" for i in range(5)]
    whole = gzip.decompress(data)
    for r in rows[:4]:
        assert r.offset == 0
        assert r.length == rows[4].offset
        assert whole[r.inner :].startswith(b"WARC/1.0")
        assert f"WARC-Target-URI: {r.url}\r\n".encode() in whole[r.inner : r.inner + 120]


def test_long_member_is_not_held_but_keeps_true_lengths() -> None:
    data = gzip.compress(b"".join(page(i) for i in range(50)))
    assert [(r.inner, r.length) for r in read(data, Limits(hold_bytes=500))] == [
        (r.inner, len(data)) for r in read(data)
    ]


def test_record_over_several_members_and_empty_members_between() -> None:
    raw, empty = page(30), gzip.compress(b"")
    data = empty + gzip.compress(raw[:250]) + empty + gzip.compress(raw[250:]) + empty + gzip.compress(page(1)) + empty
    rows = read(data)
    assert urls(rows) == ["http://site/30", "http://site/1"]
    first = rows[0]
    assert isinstance(first, Record)
    assert first.offset == len(empty)
    assert not first.truncated
    assert gzip.decompress(data[first.offset : first.offset + first.length]) == raw
    assert isinstance(page_of(first, LIMITS), Page)


def test_uncompressed_offsets() -> None:
    data = page(0) + page(1) + page(2)
    rows = read(data)
    assert [r.offset for r in rows] == [0, len(page(0)), len(page(0) + page(1))]
    for r in rows:
        assert isinstance(r, Record)
        assert r.inner == 0
        cut = data[r.offset : r.offset + r.length]
        assert cut.startswith(b"WARC/1.0")
        assert cut.endswith(r.block)


def test_line_feeds_angle_brackets_and_folded_fields() -> None:
    data = record("<http://site/a b>", response("<html>x</html>"), extra="X-Long: one\n two", end="\n")
    (r,) = read(data)
    assert isinstance(r, Record)
    assert r.url == "http://site/a b"
    assert r.headers.get("x-LONG") == "one two"


def test_truncated_last_member_is_one_quarantined_row() -> None:
    whole, last = gzip.compress(page(1)), gzip.compress(record("http://site/cut", response(noise(5000).hex())))
    for keep in (len(last) // 2, len(last) - 3):
        rows = read(whole + last[:keep])
        assert urls(rows) == ["http://site/1", "warc.truncated_member"]
        damage = rows[1]
        assert isinstance(damage, Damage)
        assert (damage.offset, damage.inner, damage.length) == (len(whole), 0, keep)
        assert (damage.file, damage.kind, damage.url) == ("x.warc.gz", "response", "http://site/cut")


def test_truncated_uncompressed_tail() -> None:
    data = page(1) + page(2)[:-60]
    rows = read(data)
    assert urls(rows) == ["http://site/1", "warc.truncated_record"]
    assert rows[1].offset + rows[1].length == len(data)
    rows = read(page(1) + page(2)[:40])
    assert urls(rows) == ["http://site/1", "warc.truncated_record"]


def test_corrupt_member_in_the_middle_costs_only_itself() -> None:
    members = [gzip.compress(record(f"http://site/{i}", response(noise(3000).hex()))) for i in range(5)]
    bad = bytearray(members[2])
    bad[len(bad) // 2 :] = b"\xff" * (len(bad) - len(bad) // 2)
    rows = read(b"".join([*members[:2], bytes(bad), *members[3:]]))
    assert [r.url for r in rows] == [f"http://site/{i}" for i in range(5)]
    damage = rows[2]
    assert isinstance(damage, Damage)
    assert damage.reason in ("warc.bad_gzip", "warc.bad_crc")
    assert damage.length == len(members[2])


def test_lost_bytes_do_not_swallow_the_next_member() -> None:
    members = [gzip.compress(record(f"http://site/{i}", response(noise(3000).hex()))) for i in range(4)]
    rows = read(members[0] + members[1][:-900] + members[2] + members[3])
    assert [r.url for r in rows] == [f"http://site/{i}" for i in range(4)]
    assert [isinstance(r, Damage) for r in rows] == [False, True, False, False]
    assert rows[1].length == len(members[1]) - 900


def test_failed_checksum_is_damage() -> None:
    bad = bytearray(gzip.compress(page(1)))
    bad[-6] ^= 1
    rows = read(gzip.compress(page(0)) + bytes(bad) + gzip.compress(page(2)))
    assert urls(rows) == ["http://site/0", "warc.bad_crc", "http://site/2"]
    assert rows[1].url == "http://site/1"


@pytest.mark.parametrize("junk", [b"not gzip at all", b"\x1f\x8b\x08\x00 but no stream", noise(200_000)])
def test_garbage_between_members(junk: bytes) -> None:
    first, second = gzip.compress(page(0)), gzip.compress(page(1))
    rows = read(first + junk + second)
    assert [r.url for r in rows if isinstance(r, Record)] == ["http://site/0", "http://site/1"]
    (damage,) = [r for r in rows if isinstance(r, Damage)]
    assert (damage.offset, damage.length) == (len(first), len(junk))
    assert rows[-1].offset == len(first) + len(junk)


def test_padding_is_no_damage() -> None:
    rows = read(gzip.compress(page(0)) + bytes(1000) + gzip.compress(page(1)) + bytes(70_000) + b"\r\n")
    assert urls(rows) == ["http://site/0", "http://site/1"]


@pytest.mark.parametrize("packed", [False, True])
def test_garbage_and_bad_headers_inside(packed: bool) -> None:
    data = page(0) + b"stray bytes\r\n" + page(1) + b"WARC/1.0\r\nno colon here\r\n\r\nrubbish\r\n" + page(2)
    rows = read(gzip.compress(data) if packed else data)
    assert urls(rows) == ["http://site/0", "warc.garbage", "http://site/1", "warc.bad_header", "http://site/2"]


@pytest.mark.parametrize("packed", [False, True])
def test_content_length_too_long_is_cut_at_the_next_record(packed: bool) -> None:
    html = response("<html>short</html>")
    long = record("http://site/long", html, size=len(html) + 20)
    data = page(0) + long + page(1)
    rows = read(gzip.compress(data) if packed else data)
    assert urls(rows) == ["http://site/0", "http://site/long", "http://site/1"]
    middle = rows[1]
    assert isinstance(middle, Record)
    assert middle.truncated
    assert middle.block == html
    assert page_of(middle, LIMITS) == Skip("http.truncated", float(len("<html>short</html>")))


def test_content_length_beyond_the_file() -> None:
    rows = read(record("http://site/huge", b"x" * 50, size=10**15) + page(1))
    assert urls(rows) == ["http://site/huge", "http://site/1"]
    # member per record: the next member's record ends the block
    rows = read(gzip.compress(record("http://site/huge", b"x" * 50, size=10**15)) + gzip.compress(page(1)))
    assert urls(rows) == ["http://site/huge", "http://site/1"]
    assert isinstance(rows[0], Record)
    assert rows[0].truncated


def test_http_vouches_for_a_payload_whose_record_length_is_wrong() -> None:
    head = "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 18\r\n"
    block = response("<html>whole</html>", head)
    (r,) = read(record("http://site/v", block, size=len(block) + 500))
    assert isinstance(r, Record)
    assert r.truncated
    assert isinstance(page_of(r, LIMITS), Page)


@pytest.mark.parametrize("size", ["-5", "abc", ""])
def test_unusable_content_length(size: str) -> None:
    bad = record("http://site/bad", response("<html>b</html>")).replace(b"Content-Length: ", b"Content-Length: " + b"Z")
    bad = bad.replace(b"Content-Length: Z", f"Content-Length: {size}Z".encode())
    for data in (bad + page(1), gzip.compress(bad) + gzip.compress(page(1))):
        rows = read(data)
        assert urls(rows) == ["http://site/bad", "http://site/1"]
        assert isinstance(page_of(rows[0], LIMITS), Page)  # type: ignore[arg-type]


def test_gzip_bomb_is_never_held() -> None:
    packer = zlib.compressobj(9, wbits=31)
    size = 64 << 20
    bomb = packer.compress(record("http://site/bomb", b"", size=size).rstrip(b"\r\n") + b"\r\n\r\n")
    for _ in range(64):
        bomb += packer.compress(bytes(1 << 20))
    bomb += packer.flush()
    data = gzip.compress(page(0)) + bomb + gzip.compress(page(1))
    limits = Limits(max_block_bytes=1 << 20)
    tracemalloc.start()
    rows = read(data, limits)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20
    assert urls(rows) == ["http://site/0", "http://site/bomb", "http://site/1"]
    assert isinstance(rows[1], Record)
    assert rows[1].too_large
    assert rows[1].block == b""
    assert rows[1].length == len(bomb)
    assert page_of(rows[1], limits) == Skip("http.too_large")
    rows = read(data, Limits(max_block_bytes=1 << 20, max_member_bytes=8 << 20))
    assert urls(rows) == ["http://site/0", "warc.member_too_large", "http://site/1"]
    assert rows[1].url == "http://site/bomb"


def test_large_block_with_a_false_length_is_read_again() -> None:
    limits = Limits(max_block_bytes=1000)
    rows = read(record("http://site/big", b"y" * 5000, size=5600) + page(1) + page(2) + page(60), limits)
    assert urls(rows) == ["http://site/big", "http://site/1", "http://site/2", "http://site/60"]


ARC = (
    b"filedesc://a.arc 0.0.0.0 20010101000000 text/plain 76\n1 0 Test\n"
    b"URL IP-address Archive-date Content-type Archive-length\n"
)


def arc(url: str, block: bytes, kind: str = "text/html", date: str = "20010203040506", size: str = "") -> bytes:
    return f"{url} 10.0.0.1 {date} {kind} {size or len(block)}\n".encode("latin-1") + block + b"\n"


@pytest.mark.parametrize("packed", [False, True])
def test_arc(packed: bool) -> None:
    head = ARC.replace(b" 76\n", f" {len(ARC) - ARC.index(b'1 0')}\n".encode()) + b"\n"
    docs = [
        arc("http://site/plain", response("<html>one</html>")),
        arc("http://site/a b?c=d e", response("<html>two</html>"), kind="text/html; charset=x"),
        arc("http://site/none", b"SSH-2.0\r\n", kind=""),
        arc("http://site/date", response("<html>three</html>"), date="a0d1fdddf3165d0447b1f7a285c61c1c9"),
        arc("http://site/negative", b"", size="-7"),
        arc("http://site/last", response("<html>four</html>")),
    ]
    data = b"".join(map(gzip.compress, [head, *docs])) if packed else head + b"".join(docs)
    rows = read(data)
    assert all(isinstance(r, Record) for r in rows)
    kinds = [r.kind for r in rows]
    assert kinds == ["warcinfo"] + ["response"] * 6
    assert [r.url.removeprefix("http://site/") for r in rows[1:]] == [
        "plain", "a b?c=d e", "none", "date", "negative", "last",
    ]  # fmt: skip
    found = [page_of(r, LIMITS) for r in rows if isinstance(r, Record)]
    assert [f.reason if isinstance(f, Skip) else f.html.decode() for f in found] == [
        "record.warcinfo", "<html>one</html>", "<html>two</html>", "http.bad", "<html>three</html>", "http.empty_body",
        "<html>four</html>",
    ]  # fmt: skip


def test_zstd_with_and_without_dictionary() -> None:
    pages: list[bytes | bytearray | memoryview[int]] = [page(i) for i in range(40)]
    plain = zstandard.ZstdCompressor()
    rows = read(b"".join(plain.compress(p) for p in pages))
    assert urls(rows) == [f"http://site/{i}" for i in range(40)]
    trained = zstandard.train_dictionary(2000, pages * 10)
    packer = zstandard.ZstdCompressor(dict_data=trained)
    for raw in (trained.as_bytes(), plain.compress(trained.as_bytes())):
        frame = b"\x5d\x2a\x4d\x18" + len(raw).to_bytes(4, "little") + raw
        frames = [packer.compress(p) for p in pages]
        rows = read(frame + b"".join(frames))
        assert urls(rows) == [f"http://site/{i}" for i in range(40)]
        assert rows[0].offset == len(frame)
        assert [r.length for r in rows] == [len(f) for f in frames]
    rows = read(plain.compress(page(0)) + plain.compress(page(1))[:-5])
    assert urls(rows) == ["http://site/0", "warc.truncated_member"]


def test_lz4() -> None:
    frame = pytest.importorskip("lz4.frame", reason="the optional package lz4 is not installed")
    frames = [frame.compress(page(i)) for i in range(3)]
    rows = read(b"".join(frames))
    assert urls(rows) == [f"http://site/{i}" for i in range(3)]
    assert [r.length for r in rows] == [len(f) for f in frames]
    rows = read(frames[0] + frames[1][:-9] + frames[2])
    assert [r.url for r in rows] == [f"http://site/{i}" for i in range(3)]
    assert isinstance(rows[1], Damage)


def test_lz4_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def missing(name: str, package: str | None = None) -> object:
        if name.startswith("lz4"):
            raise ModuleNotFoundError("No module named 'lz4'")
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", missing)
    (damage,) = read(b"\x04\x22\x4d\x18" + bytes(100))
    assert isinstance(damage, Damage)
    assert (damage.reason, damage.length) == ("warc.no_decoder", 104)
    assert "pip install lz4" in damage.message


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "warc.empty_file"),
        (b"<html>no archive</html>", "warc.not_an_archive"),
        (gzip.compress(b"<html>no archive</html>\n" * 100), "warc.not_an_archive"),
        (b"\x1f\x8b", "warc.not_an_archive"),
        (b"\x1f\x8b\x08\x00", "warc.truncated_member"),
    ],
)
def test_no_archive(data: bytes, reason: str) -> None:
    (damage,) = read(data)
    assert isinstance(damage, Damage)
    assert (damage.reason, damage.offset, damage.length) == (reason, 0, len(data))


@pytest.mark.parametrize(
    ("kind", "reason"),
    [(k, f"record.{k}") for k in ("warcinfo", "request", "metadata", "resource", "revisit", "conversion")]
    + [("continuation", "record.other"), ("unknown", "record.other")],
)
def test_other_kinds(kind: str, reason: str) -> None:
    (r,) = read(record("http://site/k", response("<html>x</html>"), kind=kind))
    assert isinstance(r, Record)
    assert page_of(r, LIMITS) == Skip(reason)
