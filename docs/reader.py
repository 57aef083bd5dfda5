"""Reads values that kvwrap has stored in chunks, as docs/format.md has it.

    python3 docs/reader.py < internal/format/testdata/values_v1.golden

It needs nothing but Python and something that decodes zstd: Python 3.14, the package
zstandard or the command zstd. read() is all that an application needs; it is given what an
etcd client has read of one key and of the range of its chunks, at one revision.

This is to be read along with the page, not to be fast: take the package xxhash for that.
"""

import hashlib
import json
import struct
import subprocess
import sys

try:
    from compression.zstd import decompress
except ImportError:
    try:
        import zstandard

        def decompress(frame):
            return zstandard.ZstdDecompressor().decompressobj().decompress(frame)

    except ImportError:

        def decompress(frame):
            return subprocess.run(["zstd", "-d", "-c", "-q"], input=frame, capture_output=True, check=True).stdout


MAGIC = b"\xff\x6b\x76\x77"


class Refused(Exception):
    """What is stored is damaged, or of a version that this reader does not know."""


def check(holds, what):
    if not holds:
        raise Refused(what)


def chunk_range(key, prefix=b"\x00kvw/"):
    """Returns the range of keys, its end excluded, that has the chunks of key."""
    escaped = prefix + key.replace(b"\x00", b"\x00\xff")
    return escaped + b"\x00\x01", escaped + b"\x00\x02"


def read(key, stored, chunks, prefix=b"\x00kvw/"):
    """Returns the value of key, of what is stored there and of the chunks in its range."""
    if not stored.startswith(MAGIC):
        return stored
    check(len(stored) >= 6 and stored[4] == 1, "another format version")
    if stored[5] == 0:
        return stored[6:]
    check(stored[5] == 1 and len(stored) >= 14, "another kind")

    body, at = stored[:-8], 6
    check(xxhash64(body) == stored[-8:], "the manifest's checksum")

    def take(n):
        nonlocal at
        check(at + n <= len(body), "the manifest is cut short")
        at += n
        return body[at - n : at]

    def varint():
        n = shift = 0
        while True:
            b = take(1)[0]
            n |= (b & 0x7F) << shift
            if b < 0x80:
                return n
            shift += 7
            check(shift < 70, "a varint is too long")

    take(16)  # the token
    check(take(varint()) == prefix, "its chunks are below another prefix")
    check(take(8) == xxhash64(key), "it is another key's manifest")
    varint()  # the lease
    least, average, most = varint(), varint(), varint()
    check(64 <= least <= average <= most <= 1 << 20, "cutting parameters")
    length, digest, depth, refs = varint(), take(8), varint(), varint()
    check(depth <= 8 and refs <= length // 64 + 1, "depth or number of refs")
    content = unpack(body[at:], 40 * refs)

    begin = chunk_range(key, prefix)[0]
    for level in range(depth, -1, -1):
        check(len(content) % 40 == 0, "a list is cut short")
        pieces, total = [], 0
        for token_index, n, _ in struct.iter_unpack(">20sI16s", content):
            total += n
            check(0 < n <= 1 << 20 and total <= length + 40, "a ref")
            chunk = chunks.get(begin + token_index)
            check(chunk is not None and len(chunk) >= 8, "a chunk is missing")
            check(xxhash64(token_index + chunk[:-8]) == chunk[-8:], "a chunk's checksum")
            pieces.append(unpack(chunk[:-8], n))
        content = b"".join(pieces)
    check(len(content) == length and xxhash64(content) == digest, "the value's digest")
    return content


def unpack(packed, n):
    check(packed[:1] in (b"\x00", b"\x01"), "another codec")
    plain = packed[1:]
    if packed[0] == 1:
        try:
            plain = decompress(plain)
        except Exception as e:
            raise Refused(f"zstd: {e}") from e
    check(len(plain) == n, "it does not decode to the length that it should have")
    return plain


P = (0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5)
MASK = (1 << 64) - 1


def rotate(n, by):
    return (n << by | n >> 64 - by) & MASK


def round64(acc, lane):
    return rotate((acc + lane * P[1]) & MASK, 31) * P[0] & MASK


def xxhash64(b):
    """Returns the xxhash64 of b with seed 0, in eight bytes, big endian."""
    end = len(b) - len(b) % 32
    if end:
        accs = [(P[0] + P[1]) & MASK, P[1], 0, -P[0] & MASK]
        for lanes in struct.iter_unpack("<4Q", b[:end]):
            accs = [round64(acc, lane) for acc, lane in zip(accs, lanes)]
        h = sum(rotate(acc, by) for acc, by in zip(accs, (1, 7, 12, 18)))
        for acc in accs:
            h = (h ^ round64(0, acc)) * P[0] + P[3] & MASK
    else:
        h = P[4]
    h = h + len(b) & MASK
    while end + 8 <= len(b):
        h = rotate(h ^ round64(0, struct.unpack_from("<Q", b, end)[0]), 27) * P[0] + P[3] & MASK
        end += 8
    if end + 4 <= len(b):
        h = rotate(h ^ struct.unpack_from("<I", b, end)[0] * P[0] & MASK, 23) * P[1] + P[2] & MASK
        end += 4
    for byte in b[end:]:
        h = rotate(h ^ byte * P[4] & MASK, 11) * P[0] & MASK
    h = (h ^ h >> 33) * P[1] & MASK
    h = (h ^ h >> 29) * P[2] & MASK
    return struct.pack(">Q", h ^ h >> 32)


def main():
    for golden in json.load(sys.stdin):
        chunks = {bytes.fromhex(k): bytes.fromhex(v) for k, v in golden["Chunks"]}
        key, stored, prefix = (bytes.fromhex(golden[field]) for field in ("Key", "Stored", "Prefix"))
        value = read(key, stored, chunks, prefix)
        if hashlib.sha256(value).hexdigest() != golden["SHA256"]:
            sys.exit(golden["Name"] + ": the value is another one")
        print(golden["Name"] + ":", len(value), "bytes")


if __name__ == "__main__":
    main()
