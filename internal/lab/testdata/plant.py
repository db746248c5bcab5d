"""What TestAuditor's damages are made with; each damage is a few lines behind this. Run inside the lab's root file system."""
import json
import os
import sys
import urllib.request

import kombu
import rados
import rbd

IMAGE, VOLUME, TRANSPORT = sys.argv[1:4]
cluster = rados.Rados(conffile=os.environ["CEPH_CONF"])
cluster.connect()
images, volumes, journal = (cluster.open_ioctx(p) for p in ("images", "volumes", "images"))
journal.set_namespace("cinderlift")
RBD = rbd.RBD()


def call(method, url, body=None, kind="application/json"):
    request = urllib.request.Request(url, json.dumps(body).encode() if body is not None else None, HEADERS, method=method)
    request.add_header("Content-Type", kind)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=60) as answer:
        return answer.headers, answer.read()


HEADERS = {}
domain = {"id": "default"}
user = {"name": os.environ["OS_USERNAME"], "domain": domain, "password": os.environ["OS_PASSWORD"]}
scope = {"project": {"name": os.environ["OS_PROJECT_NAME"], "domain": domain}}
answer = call("POST", os.environ["OS_AUTH_URL"] + "/auth/tokens", {"auth": {
    "identity": {"methods": ["password"], "password": {"user": user}}, "scope": scope}})
HEADERS["X-Auth-Token"] = answer[0]["X-Subject-Token"]
GLANCE = [e["url"] for s in json.loads(answer[1])["token"]["catalog"] if s["type"] == "image" for e in s["endpoints"]][0]
PATCH = "application/openstack-images-v2.1-json-patch"


def patch(*changes):
    call("PATCH", "%s/v2/images/%s" % (GLANCE, IMAGE), changes, PATCH)


def seal(io, name):
    with rbd.Image(io, name) as image:
        image.create_snap("snap")
        image.protect_snap("snap")


def unseal():
    with rbd.Image(images, IMAGE) as image:
        image.unprotect_snap("snap")
        image.remove_snap("snap")


def data(at=0):
    with rbd.Image(images, IMAGE) as image:
        image.write(b"what the volume does not hold", at)


def register():
    patch({"op": "add", "path": "/locations/-", "value": {
        "url": "rbd://%s/images/%s/snap" % (cluster.get_fsid(), IMAGE), "metadata": {}}})


def record(closed, result="done", more=""):
    text = json.dumps({"job": {"image_id": IMAGE}, "closed": closed, "outcome": {"result": result, "message": more}})
    with rados.WriteOpCtx() as op:
        op.write_full(bytes(8))
        journal.set_omap(op, ("record",), (text.encode(),))
        journal.operate_write_op(op, "job." + IMAGE)


def index(add=True):
    with rados.WriteOpCtx() as op:
        if add:
            journal.set_omap(op, (IMAGE,), (b"",))
        else:
            journal.remove_omap_keys(op, (IMAGE,))
        journal.operate_write_op(op, "index")


def send(queue):
    with kombu.Connection(TRANSPORT.replace("rabbit://", "amqp://")) as c:
        channel = c.channel()
        channel.queue_declare(queue, durable=True, auto_delete=False)
        kombu.Producer(channel).publish({"a": 1}, routing_key=queue)


def empty(queue):
    with kombu.Connection(TRANSPORT.replace("rabbit://", "amqp://")) as c:
        c.channel().queue_purge(queue)


def volume_snap(name):
    with rbd.Image(volumes, "volume-" + VOLUME) as image:
        image.create_snap(name)
        image.protect_snap(name)


def volume_unsnap(name):
    with rbd.Image(volumes, "volume-" + VOLUME) as image:
        image.unprotect_snap(name)
        image.remove_snap(name)


