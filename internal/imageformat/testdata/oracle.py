"""Asks Glance's own code whether it would take an upload.

The first line that goes out is {"release": 30, "inspects": true}. Then one JSON object a line comes in, one goes out:
  {"declared": "raw", "size": N, "parts": [{"at": N, "data": "BASE64"}], "match": true, "nonfatal": ["mbr"], "chunk": 8388608}
  {"refused": true, "why": "…", "bypassed": false}

The code path is that of PUT /v2/images/{id}/file: glance.location.ImageProxy.set_data, with a store that reads as
glance_store's RBD driver does (rbd_store_chunk_size, 8 MiB by default) and keeps nothing. bypassed says that the inspection
broke down in an AttributeError, which set_data takes for an image that is not to be inspected.
"""

import base64
from importlib import metadata
import io
import json
import logging
import sys
from unittest import mock

from glance.common import config  # noqa: F401: registers the options
from glance.common import exception
from glance import location
from oslo_config import cfg

CONF = cfg.CONF
CHUNK = 8 << 20


class Image:
    """What set_data needs of an image."""

    def __init__(self, declared):
        self.image_id = 'c0ffee00-0000-4000-8000-000000000000'
        self.disk_format = declared
        self.container_format = 'bare'
        self.extra_properties = {}
        self.status = 'saving'
        self.locations = []
        self.checksum = self.os_hash_value = self.os_hash_algo = self.size = self.virtual_size = None


class Store:
    """Reads everything and keeps nothing."""

    def __init__(self, chunk):
        self.chunk = chunk

    def _take(self, data):
        size = 0
        while True:
            chunk = data.read(self.chunk)
            if not chunk:
                return size
            size += len(chunk)

    def add_with_multihash(self, conf, image_id, data, *args, **kwargs):
        return 'rbd://somewhere', self._take(data), 'checksum', 'multihash', {}

    add_to_backend_with_multihash = add_with_multihash

    def delete_from_backend(self, *args, **kwargs):
        pass

    set_acls_for_multi_store = set_acls = delete = delete_from_backend


def inspected(question):
    data = bytearray(question['size'])
    for part in question['parts'] or []:
        piece = base64.b64decode(part['data'])
        data[part['at']:part['at'] + len(piece)] = piece
    return io.BytesIO(bytes(data[:question['size']]))


def bypass(data):
    """Whether the inspection of these bytes breaks down."""
    try:
        from oslo_utils.imageutils import format_inspector
    except ImportError:
        return False
    wrapper = format_inspector.InspectWrapper(data)
    while wrapper.read(CHUNK):
        pass
    wrapper.close()
    try:
        wrapper.formats if hasattr(type(wrapper), 'formats') else wrapper.format
    except AttributeError:
        return True
    except Exception:
        return False
    return False


def inspects():
    return 'require_image_format_match' in CONF.image_format


def ask(question):
    if inspects():
        CONF.set_override('require_image_format_match', question.get('match', True), 'image_format')
        CONF.set_override('gpt_safety_checks_nonfatal', question.get('nonfatal') or [], 'image_format')
    proxy = location.ImageProxy(Image(question['declared']), mock.Mock(), Store(question.get('chunk') or CHUNK), mock.Mock())
    refused, why = False, ''
    try:
        proxy.set_data(inspected(question), size=question['size'])
    except getattr(exception, 'InvalidImageData', ()) as e:
        refused, why = True, str(e)
    return {'refused': refused, 'why': why, 'bypassed': not refused and bypass(inspected(question))}


def main():
    logging.disable(logging.CRITICAL)
    CONF([], project='glance', default_config_files=[])
    print(json.dumps({'release': int(metadata.version('glance').split('.')[0]), 'inspects': inspects()}), flush=True)
    for line in sys.stdin:
        print(json.dumps(ask(json.loads(line))), flush=True)


main()
