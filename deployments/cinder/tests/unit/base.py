"""What all unit tests need: an upload, and Cinder's options."""

import unittest
from unittest import mock

from oslo_config import cfg
from oslo_config import fixture
import oslo_messaging as messaging

from cinder import context
from cinder import objects

from cinderlift_cinder import pool  # noqa: F401 (registers the options)

VOLUME = '672b6d08-8fe9-4d66-98b7-bd3a1fedb0bb'
IMAGE = '077d3044-7b4f-4e59-87d3-3573d75dd2e5'
OTHER = '14e315b6-1355-4515-8492-92cb5a6aa4bc'
META = {'id': IMAGE, 'disk_format': 'raw', 'container_format': 'bare'}

UNDELIVERABLE = messaging.MessageUndeliverable(None, None, None, None)


def request(token='TOKEN', **kwargs):
    return context.RequestContext(user_id='u', project_id='p', is_admin=False,
                                  auth_token=token, **kwargs)


def volume(status='uploading', **kwargs):
    values = dict(id=VOLUME, host='lab@rbd#pool', cluster_name=None, size=1,
                  status=status, attach_status='detached', project_id='p',
                  encryption_key_id=None, volume_type_id=None, _name_id=None)
    values.update(kwargs)
    return objects.Volume(context=request(), **values)


class Bus:
    """Stands for cinder.rpc: keeps what is sent, and answers as told."""

    def __init__(self, answer=None):
        self.answer = answer
        self.sent = []

    def get_client(self, target, *args, **kwargs):
        return Client(self, target)


class Client:
    def __init__(self, bus, target, **prepared):
        self.bus, self.target, self.prepared = bus, target, prepared

    def prepare(self, **kwargs):
        return Client(self.bus, self.target, **{**self.prepared, **kwargs})

    def _send(self, kind, ctxt, method, kwargs):
        self.bus.sent.append((kind, self, ctxt, method, kwargs))
        if isinstance(self.bus.answer, Exception):
            raise self.bus.answer
        return self.bus.answer

    def cast(self, ctxt, method, **kwargs):
        self._send('cast', ctxt, method, kwargs)

    def call(self, ctxt, method, **kwargs):
        return self._send('call', ctxt, method, kwargs)


class TestCase(unittest.TestCase):
    def setUp(self):
        super().setUp()
        self.config = fixture.Config(cfg.CONF)
        self.config.setUp()
        self.addCleanup(self.config.cleanUp)
        # Registers control_exchange, as cinder.rpc.init does.
        messaging.get_rpc_transport(cfg.CONF, 'fake://')
        self.bus = Bus()
        self.patch('cinder.rpc.get_client', self.bus.get_client)

    def patch(self, name, *args, **kwargs):
        patcher = mock.patch(name, *args, **kwargs)
        self.addCleanup(patcher.stop)
        return patcher.start()
