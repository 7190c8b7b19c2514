#!/usr/bin/env python3
"""Makes ring_vectors.json: placement as an independent implementation sees it.

Needs the PyPI package xxhash. Run from this directory: python3 make_vectors.py > ring_vectors.json
"""
import json
from xxhash import xxh3_64_intdigest as xxh3


def place(members, points, key_hash):
    circle = sorted((xxh3(f"{name}#{n}".encode()), name)
                    for name, weight in members for n in range(weight * points))
    order = [name for h, name in circle if h >= key_hash] + [name for h, name in circle if h < key_hash]
    owner = order[0]
    return owner, next((name for name in order if name != owner), None)


def main():
    rings = [
        {"points": 1024, "members": [["127.0.0.1:9999", 1]]},
        {"points": 1024, "members": [["node-a", 1], ["node-b", 1], ["node-c", 1]]},
        {"points": 16, "members": [["10.0.0.1:9999", 1], ["10.0.0.2:9999", 3], ["ü", 2]]},
    ]
    keys = [["scores", b"Tom"], ["scores", b"Jack"], ["scores", b"Sam"], ["other", b"Tom"],
            ["scores", b"\x00"], ["scores", b"\xff\xfe"], ["s", b"k" * 1024], ["g" * 128, b"x"]]
    keys += [["bulk", b"key-%d" % n] for n in range(40)]
    vectors = []
    for ring in rings:
        placed = []
        for group, key in keys:
            h = xxh3(group.encode() + b"\0" + key)
            owner, successor = place(ring["members"], ring["points"], h)
            placed.append({"group": group, "key_hex": key.hex(), "hash": f"{h:016x}",
                           "owner": owner, "successor": successor})
        vectors.append({**ring, "keys": placed})
    print(json.dumps(vectors, indent=1, ensure_ascii=False))


main()
