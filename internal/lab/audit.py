"""Looks at a whole cloud and says what is wrong with it, by nothing but the services' own interfaces.

audit.py audit        reads a manifest (JSON) from standard input, prints a JSON list of violations
audit.py serve        reads a JSON list [COMMAND, ARGUMENT…] per line and answers one line each:
                      {"ok": …} or {"error": "…"}; commands: records WHERE IDS, verify REQUEST, named NAME

Runs inside the lab's root file system, as Ceph's and OpenStack's admin. The manifest:
  requests   of each accepted request: image, volume, digest ("size digest" of the volume; "" when it can't be compared),
             name; cancelled (its user has deleted the image), removed (verified, and deleted since)
  volumes    id to digest: volumes that nobody has written to since
  namespace, journal_pool, topic, host: of the workers and of cinder-volume
  queues     of our own and on the way to cinder-volume; transport: the broker's URL

A violation is {"code": …, "what": …, "where": …}; the codes are listed in audit.go.
"""
import concurrent.futures
import hashlib
import json
import os
import struct
import sys
import urllib.error
import urllib.parse
import urllib.request

import amqp
import rados
import rbd

BLOCK = 4 << 20
SNAP = "snap"  # the snapshot that Glance's RBD store makes of each image
OURS = "cinderlift."  # begins the name of each snapshot that a worker makes on a volume
SECRET = b"gAAAA"  # begins every Fernet token
KEYS_AT_ONCE = 1000

ACTIVE, GONE = "active", None


class OpenStack:
    """Keystone's catalog and its services, over plain HTTP: openstacksdk takes longer to import than this to run."""

    def __init__(self):
        self.opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        self.headers = {"Content-Type": "application/json", "OpenStack-API-Version": "volume 3.59"}
        scope = {"name": os.environ["OS_PROJECT_NAME"], "domain": {"id": "default"}}
        user = {"name": os.environ["OS_USERNAME"], "domain": {"id": "default"}, "password": os.environ["OS_PASSWORD"]}
        headers, answer = self.call("POST", os.environ["OS_AUTH_URL"] + "/auth/tokens", {"auth": {
            "identity": {"methods": ["password"], "password": {"user": user}}, "scope": {"project": scope}}})
        self.headers["X-Auth-Token"] = headers["X-Subject-Token"]
        self.catalog = {s["type"]: self.public(s) for s in answer["token"]["catalog"]}

    @staticmethod
    def public(service):
        return [e["url"] for e in service["endpoints"]
                if e["interface"] == "public" and e["region"] == os.environ["OS_REGION_NAME"]][0]

    def call(self, method, url, body=None):
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(url, data, self.headers, method=method)
        with self.opener.open(request, timeout=120) as answer:
            return answer.headers, json.loads(answer.read())

    def get(self, service, path):
        return self.call("GET", self.catalog[service] + path)[1]

    def images(self):
        found = {}
        for hidden in ("false", "true"):
            path = "/v2/images?limit=200&os_hidden=" + hidden
            while path:
                page = self.get("image", path)
                # A Glance that is killed in the middle of a delete shows the image as `deleted` ever after, and refuses
                # another delete. Whether its data is gone, Ceph tells.
                found.update({i["id"]: i for i in page["images"] if i["status"] != "deleted"})
                path = page.get("next")
        return found

    def image(self, image_id):
        try:
            return self.get("image", "/v2/images/" + image_id)
        except urllib.error.HTTPError as e:
            if e.code == 404:
                return None
            raise

    def volumes(self):
        found, marker = {}, ""
        while True:
            page = self.get("volumev3", "/volumes/detail?all_tenants=1&limit=200" + marker)["volumes"]
            if not page:
                return found
            found.update({v["id"]: v for v in page})
            marker = "&marker=" + page[-1]["id"]


class Audit:
    def __init__(self, cluster, manifest):
        self.cluster, self.manifest = cluster, manifest
        self.fsid = cluster.get_fsid()
        self.found = []

    def say(self, code, what, where):
        self.found.append({"code": code, "what": what, "where": where})

    # --- RBD -------------------------------------------------------------------------------------------------------

    def digest(self, image):
        """Equal for equal content: of every 4 MiB that are not all zero, with their offset. Holes are not even read."""
        size, blocks, zeros = image.size(), set(), bytes(BLOCK)

        def extent(offset, length, exists):
            if exists and length:
                blocks.update(range(offset // BLOCK, (offset + length - 1) // BLOCK + 1))

        image.diff_iterate(0, size, None, extent, include_parent=True, whole_object=False)
        sum_ = hashlib.sha256()
        for at in sorted(b * BLOCK for b in blocks):
            block = image.read(at, min(BLOCK, size - at))
            if block != zeros[:len(block)]:
                sum_.update(b"%d " % at)
                sum_.update(block)
        return "%d %s" % (size, sum_.hexdigest())

    def snapshots(self, image, where):
        """The user's snapshots; those in the trash, which some clone still keeps, are said at once."""
        users = []
        for snap in image.list_snaps():
            if snap["namespace"] == rbd.RBD_SNAP_NAMESPACE_TYPE_USER:
                users.append(snap["name"])
            elif snap["namespace"] == rbd.RBD_SNAP_NAMESPACE_TYPE_TRASH:
                self.say("snapshot-trashed", "a removed snapshot is kept by a clone", "%s@%s" % (where, snap["name"]))
        return users

    def parent(self, image):
        try:
            return "%s/%s@%s" % image.parent_info()
        except rbd.ImageNotFound:
            return None

    def rbd_image(self, ioctx, image_id, request, glance, where):
        """An image of Glance's pool that Glance knows as active."""
        with rbd.Image(ioctx, image_id, read_only=True) as image:
            snaps = self.snapshots(image, where)
            for extra in sorted(set(snaps) - {SNAP}):
                self.say("snapshot-left", "a snapshot besides Glance's own", "%s@%s" % (where, extra))
            if self.parent(image):
                self.say("image-parent", "the image hangs on %s" % self.parent(image), where)
            for key, _ in image.metadata_list():
                if key.startswith("conf_"):
                    self.say("image-metadata", "the volume's setting %s came along" % key, where)
            if SNAP not in snaps:
                self.say("image-unsealed", "Glance's snapshot is missing", "%s@%s" % (where, SNAP))
                return
            if not image.is_protected_snap(SNAP):
                self.say("image-unsealed", "Glance's snapshot is not protected", "%s@%s" % (where, SNAP))
        self.content(ioctx, image_id, request, glance, "%s@%s" % (where, SNAP))

    def content(self, ioctx, image_id, request, glance, where):
        with rbd.Image(ioctx, image_id, snapshot=SNAP, read_only=True) as image:
            if self.parent(image):
                self.say("image-parent", "the snapshot hangs on %s" % self.parent(image), where)
            if glance["size"] != image.size():
                self.say("image-size", "Glance says %s bytes, Ceph %d" % (glance["size"], image.size()), where)
            if request and request.get("digest"):
                have = self.digest(image)
                if have != request["digest"]:
                    self.say("image-content", "holds %s, its volume %s" % (have, request["digest"]), where)

    def active(self, image_id, request, glance):
        """An active image: its data have to be where Glance's location says."""
        for url in [l["url"] for l in glance.get("locations", [])] or [glance.get("direct_url", "")]:
            if not url.startswith("rbd://"):
                continue
            fsid, pool, name, _ = url[len("rbd://"):].split("/")
            where = "%s/%s" % (pool, name)
            if fsid != self.fsid or name != image_id:
                self.say("image-data-missing", "the location %s is not of this image and cluster" % url, where)
                continue
            with self.cluster.open_ioctx(pool) as ioctx:
                try:
                    self.rbd_image(ioctx, name, request, glance, where)
                except rbd.ImageNotFound:
                    self.say("image-data-missing", "active in Glance, and not to be opened in Ceph", where)

    def pool_names(self, ioctx):
        return {i["id"]: i["name"] for i in rbd.RBD().list2(ioctx)}

    def trash(self, ioctx, pool):
        trashed = list(rbd.RBD().trash_list(ioctx))
        for entry in trashed:
            self.say("rbd-trashed", "an image in the trash: something hung on it when it was deleted",
                     "%s/%s (id %s)" % (pool, entry["name"], entry["id"]))
        return {entry["id"] for entry in trashed}

    def orphans(self, ioctx, pool, ids):
        """Objects of images that do not exist (any more)."""
        counts = {}
        for found in ioctx.list_objects():
            parts = found.key.split(".")
            if parts[0] in ("rbd_data", "rbd_header", "rbd_object_map") and len(parts) > 1 and parts[1] not in ids:
                counts.setdefault(parts[1], []).append(found.key)
        for image_id, keys in sorted(counts.items()):
            self.say("objects-orphaned", "%d objects of an image that is not there, such as %s" % (len(keys), sorted(keys)[0]),
                     "%s (id %s)" % (pool, image_id))

    def images_pool(self, pool, known):
        with self.cluster.open_ioctx(pool) as ioctx:
            names = self.pool_names(ioctx)
            for image_id, name in sorted(names.items(), key=lambda i: i[1]):
                if name not in known:
                    self.unknown(ioctx, pool, image_id, name)
            self.orphans(ioctx, pool, set(names) | self.trash(ioctx, pool))

    def unknown(self, ioctx, pool, image_id, name):
        kind = "a whole image"
        try:
            with rbd.Image(ioctx, name, read_only=True) as image:
                parent = self.parent(image)
                if parent:
                    kind = "a clone of %s" % parent
        except rbd.ImageNotFound:
            kind = "a name without a header"
        self.say("rbd-unknown", "%s that Glance does not know" % kind, "%s/%s (id %s)" % (pool, name, image_id))

    def volumes_pool(self, pool, volumes):
        with self.cluster.open_ioctx(pool) as ioctx:
            names = self.pool_names(ioctx)
            for name in sorted(names.values()):
                self.volume_image(ioctx, pool, name)
            for volume_id in sorted(self.manifest.get("volumes") or {}):
                if volume_id in volumes and "volume-" + volume_id in names.values():
                    self.untouched(ioctx, pool, volume_id)
            self.orphans(ioctx, pool, set(names) | self.trash(ioctx, pool))

    def volume_image(self, ioctx, pool, name):
        try:
            with rbd.Image(ioctx, name, read_only=True) as image:
                for snap in self.snapshots(image, "%s/%s" % (pool, name)):
                    if snap.startswith(OURS):
                        self.say("snapshot-left", "a worker's snapshot on a volume", "%s/%s@%s" % (pool, name, snap))
        except rbd.ImageNotFound:
            self.say("rbd-broken", "a name without a header", "%s/%s" % (pool, name))

    def untouched(self, ioctx, pool, volume_id):
        want = self.manifest["volumes"][volume_id]
        with rbd.Image(ioctx, "volume-" + volume_id, read_only=True) as image:
            have = self.digest(image)
        if have != want:
            self.say("volume-content", "holds %s, and held %s" % (have, want), "%s/volume-%s" % (pool, volume_id))

    # --- the journal -----------------------------------------------------------------------------------------------

    def journal(self):
        """What there is in the journal's namespace, by object."""
        records = {}
        with self.cluster.open_ioctx(self.manifest["journal_pool"]) as ioctx:
            ioctx.set_namespace(self.manifest["namespace"])
            names = sorted(o.key for o in ioctx.list_objects())
            for name in names:
                self.journal_object(ioctx, name, records)
            listed = self.index(ioctx) if "index" in names else set()
        for key in sorted(listed - set(records)):
            self.say("index-stray", "the index names a job without a record", "index: " + key)
        for key in sorted(set(records) - listed):
            self.say("index-missing", "nobody finds this job: the index does not name it", "job." + key)
        return records

    def journal_object(self, ioctx, name, records):
        kind, _, key = name.partition(".")
        if self.locked(ioctx, name):
            self.say("lock-left", "a live lease", name)
        if kind == "job":
            records[key] = self.record(ioctx, name)
        elif kind == "vol":
            self.say("volume-object-left", "the object of a volume's lease", name)
        elif name != "index":
            self.say("journal-object", "an object that no worker is known to make", name)

    def record(self, ioctx, name):
        raw = omap(ioctx, name).get("record", b"")
        if SECRET in raw:
            self.say("token-in-journal", "a user's token is stored", name)
        try:
            record = json.loads(raw)
        except ValueError:
            self.say("record-broken", "a record that is not JSON", name)
            return {}
        if not record.get("closed"):
            self.say("request-open", "a job that is not at its end: steps %s, last error %s" % (
                record.get("steps"), record.get("last_error")), name)
        return record

    def index(self, ioctx):
        return set(omap(ioctx, "index"))

    def locked(self, ioctx, name):
        """cls_lock's own list: locks that have expired are not in it (ceph 16.2.15 cls/lock/cls_lock.cc:126-149)."""
        try:
            _, reply = ioctx.execute(name, "lock", "get_info", encode_lock_name("lease"))
        except rados.ObjectNotFound:
            return False
        return len(reply) >= 10 and struct.unpack_from("<I", reply, 6)[0] > 0

    # --- requests --------------------------------------------------------------------------------------------------

    def request(self, request, record, glance):
        """An accepted request has ended once, and as the journal says."""
        image_id = request["image"]
        where = "image %s, volume %s" % (image_id, request["volume"])
        status = glance["status"] if glance else GONE
        gone_by_wish = request.get("cancelled") or request.get("removed")
        if record is None:
            if status != ACTIVE and not gone_by_wish:
                self.say("request-lost", "no worker has it in its journal, and the image is %s" % (status or "gone"), where)
            return
        outcome = record.get("outcome") or {}
        result = outcome.get("result")
        if gone_by_wish and glance:
            self.say("image-after-delete", "its user deleted the image, and it is %s" % status, where)
        if not record.get("closed") or result == "declined":
            return
        if result == "done" and status != ACTIVE and not gone_by_wish:
            self.say("image-lost", "the journal says done, and the image is %s" % (status or "gone"), where)
        if result == "cancelled" and not gone_by_wish:
            self.say("image-lost", "the job was cancelled, and nobody had deleted the image", where)
        if result in ("failed", "cancelled") and glance:
            self.say("image-after-failure", "the job %s, and the image is %s" % (result, status), where)

    def requests(self, records, images):
        named = {}
        for image_id, image in images.items():
            named.setdefault(image["name"], []).append(image_id)
        for request in (self.manifest.get("requests") or []):
            self.request(request, records.get(request["image"]), images.get(request["image"]))
            twins = named.get(request.get("name"), [])
            if len(twins) > 1:
                self.say("image-duplicate", "%d images of one request: %s" % (len(twins), ", ".join(sorted(twins))),
                         "image name " + request["name"])

    # --- everything ------------------------------------------------------------------------------------------------

    def run(self):
        cloud = OpenStack()
        images, volumes = cloud.images(), cloud.volumes()
        records = self.journal()
        self.requests(records, images)
        self.glance(images)
        for volume_id, volume in sorted(volumes.items()):
            if volume["status"] not in ("available", "in-use"):
                code = "volume-uploading" if volume["status"] == "uploading" else "volume-state"
                self.say(code, "the volume is %s" % volume["status"], "volume " + volume_id)
        pools = self.cluster.list_pools()
        for pool in ("images", "images2"):
            if pool in pools:
                self.images_pool(pool, images)
        self.volumes_pool("volumes", volumes)
        self.queues()
        return self.found

    def glance(self, images):
        expected = {r["image"]: r for r in (self.manifest.get("requests") or [])}
        looks = []
        with concurrent.futures.ThreadPoolExecutor(4) as threads:
            for image_id, image in sorted(images.items()):
                where = "image %s (%s)" % (image_id, image["name"])
                if image.get("os_hidden"):
                    self.say("image-hidden", "hidden from its user", where)
                if image["status"] == ACTIVE:
                    looks.append(threads.submit(self.active, image_id, expected.get(image_id), image))
                elif image["status"] != "deactivated":
                    self.say("image-unfinished", "the image is %s" % image["status"], where)
        for look in looks:
            look.result()

    def queues(self):
        """Declared passively, which changes nothing. What somebody holds unacknowledged is not counted by the broker."""
        url = urllib.parse.urlsplit(self.manifest["transport"])
        with amqp.Connection("%s:%d" % (url.hostname, url.port), userid=url.username, password=url.password,
                             virtual_host=urllib.parse.unquote(url.path[1:]) or "/") as broker:
            for name in self.manifest["queues"]:
                messages = self.waiting(broker, name)
                if messages:
                    code = "dead-letter" if name.endswith(".dead") else "queue-entry"
                    self.say(code, "%d messages" % messages, "queue " + name)

    @staticmethod
    def waiting(broker, name):
        try:
            return broker.channel().queue_declare(name, passive=True).message_count
        except amqp.NotFound:
            return 0


def omap(ioctx, name):
    values, after = {}, ""
    while True:
        with rados.ReadOpCtx() as op:
            pairs, _ = ioctx.get_omap_vals(op, after, "", KEYS_AT_ONCE)
            ioctx.operate_read_op(op, name)
            page = {k: v or b"" for k, v in pairs}
        values.update(page)
        if len(page) < KEYS_AT_ONCE:
            return values
        after = max(page)


def encode_lock_name(name):
    """cls_lock_get_info_op: ENCODE_START(1, 1), the name (ceph 16.2.15 cls/lock/cls_lock_ops.h:119-136)."""
    body = struct.pack("<I", len(name)) + name.encode()
    return struct.pack("<BBI", 1, 1, len(body)) + body


class Server:
    """Answers while others work: how jobs stand, and whether one image is right."""

    def __init__(self, cluster):
        self.cluster = cluster
        self.cloud = None

    def records(self, where, ids):
        """id to {closed, result, reason, message, strategy, committed, owner}; without an entry: there is no record."""
        answer = {}
        with self.cluster.open_ioctx(where["journal_pool"]) as ioctx:
            ioctx.set_namespace(where["namespace"])
            for image_id in ids:
                try:
                    record = json.loads(omap(ioctx, "job." + image_id)["record"])
                except (rados.ObjectNotFound, KeyError):
                    continue
                outcome = record.get("outcome") or {}
                answer[image_id] = {"closed": record.get("closed", False), "result": outcome.get("result", ""),
                                    "reason": outcome.get("reason", ""), "message": outcome.get("message", ""),
                                    "strategy": outcome.get("strategy", "")}
        return answer

    def glance(self, ask):
        """ask(OpenStack), with a new token when the old one has expired."""
        try:
            self.cloud = self.cloud or OpenStack()
            return ask(self.cloud)
        except urllib.error.HTTPError as e:
            if e.code != 401:
                raise
            self.cloud = OpenStack()
            return ask(self.cloud)

    def named(self, name):
        """The ids of the images of this name."""
        path = "/v2/images?name=" + urllib.parse.quote(name)
        return [i["id"] for i in self.glance(lambda cloud: cloud.get("image", path))["images"]]

    def verify(self, request):
        """The violations of one active image; none when Glance has none of this id."""
        audit, image = Audit(self.cluster, {}), self.glance(lambda cloud: cloud.image(request["image"]))
        if image and image["status"] == ACTIVE:
            audit.active(request["image"], request, image)
        return audit.found

    def answer(self, line):
        command, *arguments = json.loads(line)
        try:
            return {"ok": {"records": self.records, "verify": self.verify, "named": self.named}[command](*arguments)}
        except Exception as e:  # the one who asks decides what it means
            return {"error": "%s: %r" % (command, e)}


def main():
    with rados.Rados(conffile=os.environ["CEPH_CONF"]) as cluster:
        if sys.argv[1] == "audit":
            print(json.dumps(Audit(cluster, json.load(sys.stdin)).run()))
            return
        server = Server(cluster)
        for line in sys.stdin:
            print(json.dumps(server.answer(line)), flush=True)


main()
