from unittest import mock

import oslo_messaging as messaging

from cinder.volume import rpcapi

from cinderlift_cinder import api

from tests.unit import base


class APITest(base.TestCase):
    def setUp(self):
        super().setUp()
        for name in ('determine_obj_version_cap', 'determine_rpc_version_cap'):
            self.patch('cinder.rpc.RPCAPI.' + name, return_value=None)
        self.stock = self.patch(
            'cinder.volume.rpcapi.VolumeAPI.copy_volume_to_image',
            autospec=True)
        self.rpc = api.VolumeRPC()
        self.volume = base.volume()

    def upload(self):
        self.rpc.copy_volume_to_image(base.request(), self.volume, base.META)

    def test_offered(self):
        self.upload()
        kind, _client, _ctxt, _method, args = self.bus.sent[0]
        self.assertEqual('cast', kind)
        self.assertNotIn('done', args)
        self.stock.assert_not_called()

    def test_nobody(self):
        self.bus.answer = base.UNDELIVERABLE
        with self.assertLogs('cinderlift_cinder.api', 'WARNING') as logs:
            self.upload()
        self.assertEqual(1, len(logs.output))
        self.stock.assert_called_once_with(
            self.rpc, mock.ANY, self.volume, base.META)

    def test_disabled(self):
        self.config.config(group='cinderlift', enabled=False)
        self.upload()
        self.assertEqual([], self.bus.sent)
        self.stock.assert_called_once()

    def test_broker_trouble_is_no_reason_to_upload_twice(self):
        self.bus.answer = messaging.MessageDeliveryFailure('x')
        self.assertRaises(messaging.MessageDeliveryFailure, self.upload)
        self.stock.assert_not_called()

    def test_api_uses_it(self):
        with mock.patch('cinder.volume.api.API.__init__', return_value=None):
            self.assertIsInstance(api.API().volume_rpcapi, api.VolumeRPC)
        self.assertTrue(issubclass(api.VolumeRPC, rpcapi.VolumeAPI))
