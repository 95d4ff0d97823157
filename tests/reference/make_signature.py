#!/usr/bin/env python3
"""Writes tests/reference/signature/vectors.json: models/yocto-rgb-int8.nadir with parity, signed by openssl.

Reads and writes the file by docs/model-file.md alone, with nothing but Python's library and openssl 3, so that the tests of `quantize sign`
compare with something independent. models/make.sh runs it whenever the models are made anew. The keys beside the vectors were made by

    openssl genpkey -algorithm ed25519 -out key.pem
    openssl pkey -in key.pem -pubout -out public.pem      (other.pem: of another key)

and protect nothing.
"""

import hashlib
import json
import pathlib
import struct
import subprocess
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
FOLDER = ROOT / "tests/reference/signature"
SIZES = [4, 2, 1, 2, 4, 8]


def crc_table():
    for n in range(256):
        for _ in range(8):
            n = n >> 1 ^ (0x82F63B78 if n & 1 else 0)
        yield n


TABLE = list(crc_table())


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc = TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def padded(data, unit=64):
    return data + bytes(-len(data) % unit)


def rotated(byte, n):
    return (byte << n | byte >> (8 - n)) & 0xFF


# The check matrix, a column for each bit of a word.
COLUMNS = [rotated(p, j) for p in (0x07, 0x0B, 0x13, 0x23, 0x43, 0x15, 0x25, 0x1F) for j in range(8)]
# What a byte in each of the eight places adds to the parity.
PLACES = []
for place in range(8):
    row = []
    for value in range(256):
        total = 0
        for bit in range(8):
            if value >> bit & 1:
                total ^= COLUMNS[8 * place + bit]
        row.append(total)
    PLACES.append(row)


def parity(data):
    out = bytearray()
    for at in range(0, len(data), 8):
        total = 0
        for place in range(8):
            total ^= PLACES[place][data[at + place]]
        out.append(total)
    return bytes(out)


def encode(header, sections):
    """The file, with parity; a section is (kind, type, bytes)."""
    table_start = len(padded(bytes(32 + len(header))))
    first = len(padded(bytes(table_start + 32 * len(sections) + 8)))
    rows, offset = b"", first
    for index, (kind, dtype, data) in enumerate(sections):
        rows += struct.pack("<BBHIQQII", kind, dtype, 0, index, offset, len(data) // SIZES[dtype], crc32c(data), 0)
        offset += len(padded(data))
    length = (offset + 64) * 9 // 8
    prefix = b"\x89NAD\r\n\x1a\n" + struct.pack("<HHIIIQ", 1, 0, len(header), len(sections), 0xFFFFFFFF, length)
    out = padded(prefix + header) + rows
    out = padded(out + struct.pack("<II", 0, crc32c(out)))
    for _, _, data in sections:
        out += padded(data)
    out = padded(out + struct.pack("<I", crc32c(out)))
    return prefix, out + parity(out)


def main():
    file = (ROOT / "models/yocto-rgb-int8.nadir").read_bytes()
    header_bytes, rows = struct.unpack_from("<II", file, 12)
    header = file[32 : 32 + header_bytes]
    start = len(padded(bytes(32 + header_bytes)))
    sections = []
    for row in range(rows):
        kind, dtype, _, _, offset, elements, crc, _ = struct.unpack_from("<BBHIQQII", file, start + 32 * row)
        data = file[offset : offset + elements * SIZES[dtype]]
        assert crc32c(data) == crc
        if kind != 0xFF:
            sections.append((kind, dtype, data))
    public = subprocess.run(
        ["openssl", "pkey", "-in", FOLDER / "key.pem", "-pubout", "-outform", "DER"], check=True, capture_output=True
    ).stdout[-32:]
    key_id = hashlib.sha256(public).digest()[:8]
    prefix, _ = encode(header, sections + [(0xFF, 2, bytes(72))])
    parts = prefix + hashlib.sha256(header).digest()
    for kind, dtype, data in sections:
        parts += struct.pack("<BBQ", kind, dtype, len(data) // SIZES[dtype]) + hashlib.sha256(data).digest()
    message = b"Nadir model file Ed25519" + hashlib.sha256(parts).digest()
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        (folder / "message").write_bytes(message)
        sign = ["openssl", "pkeyutl", "-sign", "-rawin", "-inkey", FOLDER / "key.pem", "-in", folder / "message"]
        signature = subprocess.run(sign, check=True, capture_output=True).stdout
        (folder / "signature").write_bytes(signature)
        verify = ["openssl", "pkeyutl", "-verify", "-rawin", "-pubin", "-inkey", FOLDER / "public.pem"]
        verify += ["-in", folder / "message", "-sigfile", folder / "signature"]
        subprocess.run(verify, check=True, capture_output=True)
    _, signed = encode(header, sections + [(0xFF, 2, key_id + signature)])
    vectors = {
        "model": "models/yocto-rgb-int8.nadir",
        "model_sha256": hashlib.sha256(file).hexdigest(),
        "message": message.hex(),
        "signature": signature.hex(),
        "signed_bytes": len(signed),
        "signed_sha256": hashlib.sha256(signed).hexdigest(),
        "parity_sha256": hashlib.sha256(signed[len(signed) // 9 * 8 :]).hexdigest(),
    }
    (FOLDER / "vectors.json").write_text(json.dumps(vectors, indent=1) + "\n")


if __name__ == "__main__":
    main()
