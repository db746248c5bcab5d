from unittest import mock

import oslo_messaging as messaging

from cinder import exception
from cinder.volume import configuration
from cinder.volume.drivers import rbd

from cinderlift_cinder import driver

from tests.unit import base


class DriverTest(base.TestCase):
    def setUp(self):
        super().setUp()
        self.stock = self.patch(
            'cinder.volume.drivers.rbd.RBDDriver.copy_volume_to_image',
            autospec=True)
        conf = mock.MagicMock(spec=configuration.Configuration)
        with mock.patch.object(rbd.RBDDriver, '__init__', return_value=None):
            self.driver = driver.RBDDriver(configuration=conf)
        self.volume = base.volume()

    def upload(self):
        self.driver.copy_volume_to_image(
            base.request(), self.volume, mock.sentinel.service, base.META)

    def expect_stock(self):
        self.stock.assert_called_once_with(
            self.driver, mock.ANY, self.volume, mock.sentinel.service,
            base.META)

    def test_made(self):
        self.bus.answer = {'declined': False}
        self.upload()
        self.assertEqual('call', self.bus.sent[0][0])
        self.stock.assert_not_called()

    def test_declined(self):
        self.bus.answer = {'declined': True, 'reason': 'vdi'}
        with self.assertLogs('cinderlift_cinder.driver', 'WARNING') as logs:
            self.upload()
        self.assertEqual(1, len(logs.output))
        self.expect_stock()

    def test_nobody(self):
        self.bus.answer = base.UNDELIVERABLE
        with self.assertLogs('cinderlift_cinder.driver', 'WARNING') as logs:
            self.upload()
        self.assertEqual(1, len(logs.output))
        self.expect_stock()

    def test_silence_fails_and_never_uploads_twice(self):
        self.bus.answer = messaging.MessagingTimeout()
        with self.assertLogs('cinderlift_cinder.driver', 'ERROR'):
            self.assertRaises(exception.ImageCopyFailure, self.upload)
        self.stock.assert_not_called()

    def test_failure_is_passed_on(self):
        for failure in (exception.ImageCopyFailure(reason='full'),
                        messaging.RemoteError('X', 'y')):
            self.bus.answer = failure
            self.assertRaises(type(failure), self.upload)
        self.stock.assert_not_called()

    def test_disabled(self):
        self.config.config(group='cinderlift', enabled=False)
        self.upload()
        self.assertEqual([], self.bus.sent)
        self.expect_stock()
