"""Fills RBD images with recognisable data and sums them up. Run inside the lab's root file system.

content.py fill POOL/IMAGE STEP PERCENT   in every STEP MiB, fill the first PERCENT; prints the bytes written
content.py scatter POOL/IMAGE SEED MIB    write MIB in pieces of any size up to 4 MiB, here and there; prints the bytes written
content.py write POOL/IMAGE OFFSET TEXT   write TEXT at OFFSET (bytes)
content.py sum POOL/IMAGE[@SNAP]          prints "size sha256": of the whole content, holes read as zeros
content.py digest POOL/IMAGE[@SNAP]       prints "size digest": equal for equal content, and much faster where much is zero
content.py info POOL/IMAGE                prints a JSON object: size, features, parent, snapshots, metadata
"""
import hashlib
import json
import os
import random
import sys

import rados
import rbd

BLOCK = 4 << 20


def fill(image, step, percent):
    step, data = int(step) << 20, os.urandom(BLOCK)
    size, written = image.size(), 0
    for at in range(0, size, BLOCK):
        if at % step >= step * int(percent) // 100:
            continue
        # Every block says where it belongs, so that a misplaced or missing one shows.
        head = b"cinderlift block at %d\n" % at
        block = (head + data[len(head):])[:size - at]
        image.write(block, at)
        written += len(block)
    image.flush()
    print(written)


def scatter(image, seed, mib):
    dice, size, left = random.Random(int(seed)), image.size(), int(mib) << 20
    while left > 0:
        length = min(left, dice.choice((512, 4096, 65536, 1 << 20, BLOCK)))
        image.write(dice.randbytes(length), dice.randrange((size - length) // 512) * 512)
        left -= length
    image.flush()
    print(int(mib) << 20)


def total(image):
    size, digest = image.size(), hashlib.sha256()
    for at in range(0, size, BLOCK):
        digest.update(image.read(at, min(BLOCK, size - at)))
    print(size, digest.hexdigest())


def quick(image):
    size, digest, zeros = image.size(), hashlib.sha256(), bytes(BLOCK)
    for at in range(0, size, BLOCK):
        block = image.read(at, min(BLOCK, size - at))
        if block != zeros[:len(block)]:
            digest.update(b"%d " % at)
            digest.update(block)
    print(size, digest.hexdigest())


def info(image):
    try:
        parent = "/".join(image.parent_info())
    except rbd.ImageNotFound:
        parent = ""
    print(json.dumps({
        "size": image.size(), "features": image.features(), "parent": parent,
        "snapshots": {s["name"]: image.is_protected_snap(s["name"]) for s in image.list_snaps() if s["namespace"] == 0},
        "all_snapshots": len(list(image.list_snaps())),
        "metadata": dict(image.metadata_list()),
    }))


def main():
    command, where, rest = sys.argv[1], sys.argv[2], sys.argv[3:]
    pool, name = where.split("/")
    name, _, snap = name.partition("@")
    with rados.Rados(conffile=os.environ["CEPH_CONF"]) as cluster, cluster.open_ioctx(pool) as ioctx, \
            rbd.Image(ioctx, name, snapshot=snap or None, read_only=command in ("sum", "digest", "info")) as image:
        if command == "fill":
            fill(image, *rest)
        elif command == "scatter":
            scatter(image, *rest)
        elif command == "write":
            image.write(rest[1].encode(), int(rest[0]))
        elif command == "sum":
            total(image)
        elif command == "digest":
            quick(image)
        else:
            info(image)


main()
