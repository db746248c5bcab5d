"""The three hooks in real Cinder services, with a stand-in for the worker.

    CINDERLIFT_LAB_ENV=<…>/lab.env python3 -m unittest -v tests.lab.test_hooks

Needs the lab up with all services; switches its hook, and back to none at the
end. Uses a topic of its own.
"""

import json
import time
import unittest
import uuid

from tests.lab import cloud

TOPIC = 'cinder-image-upload-glue-test'
RESULT_QUEUE = 'cinder-volume.lab@rbd.lab'
MONITOR = 8


class Hook(unittest.TestCase):
    """One hook of the lab, and what its tests do. Has no tests itself."""

    hook = None  # subclasses say which
    options = ()  # of [cinderlift]

    @classmethod
    def setUpClass(cls):
        cls.cloud = cloud.Cloud()
        cls.cloud.lab('hook', cls.hook, 'topic=' + TOPIC, *cls.options)
        cls.addClassCleanup(cls.cloud.lab, 'hook', 'none')
        cls.stub = cls.cloud.stub()
        cls.addClassCleanup(cls.stub.close)
        cls.volume = cls.cloud.volume()
        cls.addClassCleanup(cls.cloud.delete, cls.volume)

    def setUp(self):
        self.stub.declare(queue=TOPIC)
        self.addCleanup(self.stub.delete, queue=TOPIC)

    def upload(self):
        """Ask for an image; return what the workers get."""
        self.image = self.cloud.upload(self.volume)
        self.addCleanup(self.cloud.glance, 'DELETE', '/images/' + self.image)
        taken = self.stub.take(queue=TOPIC)
        self.assertIsNotNone(taken, 'no request arrived')
        m = taken['message']
        self.assertEqual('copy_volume_to_image', m['method'])
        self.assertEqual('3.0', m['version'])
        self.assertEqual(self.volume, m['args']['volume_id'])
        self.assertEqual(self.image, m['args']['image_meta']['id'])
        self.assertEqual('uploading', m['args']['volume']['status'])
        self.assertEqual('lab@rbd#rbd', m['args']['volume']['host'])
        self.assertTrue(m['_context_auth_token'])
        return taken

    def upload_with_nobody(self):
        self.stub.delete(queue=TOPIC)
        self.image = self.cloud.upload(self.volume)
        self.addCleanup(self.cloud.glance, 'DELETE', '/images/' + self.image)

    def ends(self, status, seconds=180):
        """Wait until the volume is free; the image must be as told then."""
        self.cloud.until(
            lambda: self.cloud.status(self.volume) == 'available', seconds)
        self.assertEqual(status, self.cloud.image(self.image))

    def has_message_only_if(self, expected, before):
        self.assertEqual(before + (1 if expected else 0),
                         len(self.cloud.messages(self.volume)))

    def messages(self):
        return len(self.cloud.messages(self.volume))


class ManagerHook(Hook):
    hook = 'volume_manager'

    def tell(self, taken, token=False, **args):
        m = taken['message']
        done = m['args']['done']
        context = {k: v for k, v in m.items() if k.startswith('_context_') and
                   (token or k not in ('_context_auth_token',
                                       '_context_service_catalog'))}
        body = dict(context, method=done['method'], version='3.0',
                    _unique_id=uuid.uuid4().hex,
                    args=dict(args, volume_id=self.volume,
                              image_meta=m['args']['image_meta']))
        self.assertTrue(self.stub.send(exchange=done['exchange'],
                                       key=done['routing_key'], message=body))


class VolumeManager(ManagerHook):
    def test_made(self):
        before = self.messages()
        taken = self.upload()
        self.assertNotIn('_msg_id', taken['message'])
        self.assertEqual({'exchange': 'openstack', 'routing_key': RESULT_QUEUE,
                          'method': 'image_upload_done'},
                         taken['message']['args']['done'])
        self.assertEqual('uploading', self.cloud.status(self.volume))
        self.cloud.fill(self.image)
        self.tell(taken, error=None, declined=False, reason='none')
        self.ends('active')
        self.has_message_only_if(False, before)

    def test_failed(self):
        before = self.messages()
        taken = self.upload()
        self.tell(taken, error='the stand-in says no', declined=False)
        self.ends(404)
        self.has_message_only_if(True, before)

    def test_failed_and_discarded_by_the_worker(self):
        before = self.messages()
        taken = self.upload()
        self.cloud.glance('DELETE', '/images/' + self.image)
        self.tell(taken, error='the stand-in says no', declined=False)
        self.ends(404)
        self.has_message_only_if(True, before)

    def test_declined(self):
        before = self.messages()
        taken = self.upload()
        self.tell(taken, error=None, declined=True)
        self.ends('active')
        self.has_message_only_if(False, before)

    def test_nobody(self):
        self.upload_with_nobody()
        self.ends('active')

    def test_result_twice_and_late(self):
        first = self.upload()
        self.tell(first, error='no', declined=False)
        self.ends(404)
        second = self.upload()
        self.tell(first, error='no', declined=False)
        self.tell(first, error=None, declined=True)
        time.sleep(3)  # nothing may happen in this time
        self.assertEqual('uploading', self.cloud.status(self.volume))
        self.assertEqual('queued', self.cloud.image(self.image))
        self.cloud.fill(self.image)
        self.tell(second, error=None, declined=False)
        self.ends('active')

    def test_restarted_meanwhile(self):
        """The result waits in the queue of a cinder-volume that is down."""
        before = self.messages()
        taken = self.upload()
        self.cloud.lab('stop', 'cinder-volume')
        try:
            self.tell(taken, error='the stand-in says no', declined=False)
        finally:
            self.cloud.lab('start', 'cinder-volume')
        self.ends(404)
        self.has_message_only_if(True, before)

    def test_declined_after_a_restart_with_the_users_token(self):
        taken = self.upload()
        self.cloud.lab('restart', 'cinder-volume')
        self.tell(taken, token=True, error=None, declined=True)
        self.ends('active')

    def test_declined_after_a_restart_with_our_own_credentials(self):
        taken = self.upload()
        self.cloud.lab('restart', 'cinder-volume')
        self.tell(taken, error=None, declined=True)
        self.ends('active')


class VolumeManagerWithoutCredentials(ManagerHook):
    options = ('use_service_user=false',)

    def test_declined_after_a_restart(self):
        before = self.messages()
        taken = self.upload()
        self.cloud.lab('restart', 'cinder-volume')
        self.cloud.glance('DELETE', '/images/' + self.image)
        self.tell(taken, error=None, declined=True)
        self.ends(404)
        self.has_message_only_if(True, before)


class VolumeManagerOff(ManagerHook):
    options = ('enabled=false',)

    def test_stock(self):
        self.image = self.cloud.upload(self.volume)
        self.addCleanup(self.cloud.glance, 'DELETE', '/images/' + self.image)
        self.ends('active')
        self.assertIsNone(self.stub.take(queue=TOPIC, seconds=1))


class VolumeAPI(Hook):
    hook = 'volume_api_class'

    def test_offered(self):
        taken = self.upload()
        self.assertNotIn('done', taken['message']['args'])
        self.assertNotIn('_msg_id', taken['message'])
        self.cloud.fill(self.image)
        code, _headers, _answer = self.cloud.cinder(
            'POST', '/volumes/%s/action' % self.volume,
            {'os-reset_status': {'status': 'available'}}, admin=True)
        self.assertEqual(202, code)
        self.ends('active')

    def test_handed_back(self):
        """What a worker casts to cinder-volume when it declines."""
        m = self.upload()['message']
        body = dict(m, args={'volume_id': self.volume,
                             'image_meta': m['args']['image_meta']},
                    _unique_id=uuid.uuid4().hex)
        self.assertTrue(self.stub.send(exchange='openstack', key=RESULT_QUEUE,
                                       message=body))
        self.ends('active')

    def test_nobody(self):
        self.upload_with_nobody()
        self.ends('active')


class VolumeDriver(Hook):
    hook = 'volume_driver'
    options = ('call_timeout=60', 'call_monitor_timeout=%d' % MONITOR)

    def reply(self, taken, ending=True, result=None, failure=None):
        m = taken['message']
        return self.stub.send(exchange='', key=m['_reply_q'], message={
            'result': result, 'failure': failure, 'ending': ending,
            '_msg_id': m['_msg_id'], '_unique_id': uuid.uuid4().hex})

    def test_made(self):
        taken = self.upload()
        self.assertEqual(MONITOR, taken['message']['_timeout'])
        self.assertEqual('60000', taken['expiration'])
        for _ in range(3):
            time.sleep(MONITOR / 2)
            self.assertTrue(self.reply(taken, ending=False))
        self.cloud.fill(self.image)
        self.reply(taken, result={'declined': False})
        self.ends('active')

    def test_failed(self):
        before = self.messages()
        taken = self.upload()
        self.reply(taken, failure=json.dumps({
            'class': 'ImageCopyFailure', 'module': 'cinder.exception',
            'message': 'the stand-in says no', 'tb': [], 'args': [],
            'kwargs': {'reason': 'the stand-in says no'}}))
        self.ends(404)
        self.has_message_only_if(True, before)

    def test_declined(self):
        taken = self.upload()
        self.reply(taken, result={'declined': True, 'reason': 'no such way'})
        self.ends('active')

    def test_silence(self):
        before = self.messages()
        began = time.monotonic()
        self.upload()
        self.ends(404, seconds=3 * MONITOR)
        self.assertGreater(time.monotonic() - began, MONITOR - 1)
        self.has_message_only_if(True, before)

    def test_nobody(self):
        """At once, not after a timeout: the mandatory flag works for calls."""
        self.upload_with_nobody()
        self.ends('active')


if __name__ == '__main__':
    unittest.main()
