from unittest import mock

import oslo_messaging as messaging

from cinder import exception
from cinder.volume.drivers import rbd
from cinder.volume import manager as stock_manager

from cinderlift_cinder import credentials
from cinderlift_cinder import manager

from tests.unit import base


class DB:
    """The two tables that matter: volume status and admin metadata."""

    def __init__(self):
        self.marks = {}
        self.freed = 0
        self.volume = base.volume()

    def volume_admin_metadata_update(self, context, volume_id, values, delete):
        assert context.is_admin and not delete
        self.marks.update(values)

    def volume_admin_metadata_delete(self, context, volume_id, key):
        assert context.is_admin
        self.marks.pop(key, None)

    def volume_admin_metadata_get(self, context, volume_id):
        assert context.is_admin
        return dict(self.marks)

    def volume_update_status_based_on_attachment(self, context, volume_id):
        self.freed += 1
        self.volume.status = 'available'


class ManagerTest(base.TestCase):
    def setUp(self):
        super().setUp()
        self.stock = self.patch(
            'cinder.volume.manager.VolumeManager.copy_volume_to_image',
            autospec=True)
        self.patch('cinder.volume.manager.VolumeManager.__init__',
                   return_value=None)
        self.patch('cinder.service_auth.get_service_auth_plugin',
                   return_value=None)
        self.glance = mock.Mock()
        self.patch('cinder.image.glance.get_remote_image_service',
                   return_value=(self.glance, base.IMAGE))
        self.db = DB()
        self.get = self.patch('cinder.objects.Volume.get_by_id',
                              side_effect=lambda *a: self.db.volume)
        self.manager = self.new()

    def new(self, host='lab@rbd', cluster=None):
        m = manager.VolumeManager()
        m.host, m.cluster, m.db = host, cluster, self.db
        m.message_api = mock.Mock()
        m.driver = mock.Mock(spec=rbd.RBDDriver)
        m.driver.configuration = mock.Mock(
            image_upload_use_cinder_backend=False)
        m._delete_image = mock.Mock()
        return m

    def upload(self):
        self.context = base.request()
        self.manager.copy_volume_to_image(self.context, base.VOLUME,
                                          base.META)

    def done(self, context=None, **kwargs):
        self.manager.image_upload_done(context or base.request(None),
                                       base.VOLUME, base.META, **kwargs)

    def expect_nothing(self):
        self.assertEqual(0, self.db.freed)
        self.manager.message_api.create.assert_not_called()
        self.manager._delete_image.assert_not_called()

    # the request

    def test_offered(self):
        self.upload()
        kind, _client, _ctxt, _method, args = self.bus.sent[0]
        self.assertEqual('cast', kind)
        self.assertEqual({'exchange': 'openstack',
                          'routing_key': 'cinder-volume.lab@rbd.lab',
                          'method': 'image_upload_done'}, args['done'])
        self.stock.assert_not_called()
        self.assertEqual({'cinderlift_image': base.IMAGE}, self.db.marks)
        self.expect_nothing()

    def test_where_the_result_goes(self):
        for host, cluster, key in (
                ('lab@rbd', None, 'cinder-volume.lab@rbd.lab'),
                ('a.b@c', '', 'cinder-volume.a.b@c.a.b'),
                ('h1@rbd', 'ceph@rbd', 'cinder-volume.ceph@rbd.ceph')):
            self.assertEqual(key,
                             self.new(host, cluster)._here()['routing_key'])

    def test_result_queue_is_the_one_that_cinder_serves(self):
        """The same names as cinder-api uses for the same volume."""
        from cinder.volume import rpcapi
        for cap in ('determine_obj_version_cap', 'determine_rpc_version_cap'):
            self.patch('cinder.rpc.RPCAPI.' + cap, return_value=None)
        with mock.patch.object(base.Client, 'can_send_version',
                               return_value=True, create=True):
            for host, cluster in (('lab@rbd', None), ('h1@rbd', 'ceph@rbd')):
                m = self.new(host, cluster)
                client = rpcapi.VolumeAPI()._get_cctxt(
                    m.service_topic_queue + '#pool')
                self.assertEqual(
                    '%(topic)s.%(server)s' % client.prepared,
                    m._here()['routing_key'])

    def test_nobody(self):
        self.bus.answer = base.UNDELIVERABLE
        with self.assertLogs('cinderlift_cinder.manager', 'WARNING') as logs:
            self.upload()
        self.assertEqual(1, len(logs.output))
        self.stock.assert_called_once_with(
            self.manager, self.context, base.VOLUME, base.META)
        self.assertEqual({}, self.db.marks)
        self.expect_nothing()

    def test_disabled(self):
        self.config.config(group='cinderlift', enabled=False)
        self.upload()
        self.assertEqual([], self.bus.sent)
        self.stock.assert_called_once()

    def test_another_driver(self):
        self.manager.driver = mock.Mock()
        self.upload()
        self.assertEqual([], self.bus.sent)
        self.stock.assert_called_once()

    def test_cinder_store(self):
        conf = self.manager.driver.configuration
        conf.image_upload_use_cinder_backend = True
        self.upload()
        self.assertEqual([], self.bus.sent)
        self.stock.assert_called_once()

    def test_volume_is_gone(self):
        self.get.side_effect = exception.VolumeNotFound(volume_id='x')
        self.upload()
        self.assertEqual([], self.bus.sent)
        self.stock.assert_called_once()

    def test_broker_trouble_fails_the_upload(self):
        """Not the stock way: the message may have arrived."""
        self.bus.answer = messaging.MessageDeliveryFailure('x')
        self.assertRaises(messaging.MessageDeliveryFailure, self.upload)
        self.stock.assert_not_called()
        self.assertEqual(1, self.db.freed)
        self.manager._delete_image.assert_called_once()
        self.manager.message_api.create.assert_called_once()

    # the result

    def test_made(self):
        self.upload()
        self.done()
        self.assertEqual(1, self.db.freed)
        self.assertEqual({}, self.db.marks)
        self.manager.message_api.create.assert_not_called()
        self.manager._delete_image.assert_not_called()

    def test_failed(self):
        self.upload()
        self.done(error='pool is full', reason='pool-full')
        self.assertEqual(1, self.db.freed)
        self.manager.message_api.create.assert_called_once()
        self.manager._delete_image.assert_called_once_with(
            self.context, base.IMAGE, self.glance)

    def test_failed_and_discarded_by_the_worker(self):
        self.glance.show.side_effect = exception.ImageNotFound(image_id='x')
        self.upload()
        self.done(error='pool is full')
        self.assertEqual(1, self.db.freed)
        self.manager._delete_image.assert_not_called()

    def test_failed_with_glance_away(self):
        self.glance.show.side_effect = exception.GlanceConnectionFailed(
            reason='x')
        self.upload()
        self.done(error='glance is away')
        self.assertEqual(1, self.db.freed)

    def test_result_twice(self):
        for kwargs in ({}, {'error': 'x'}):
            self.db.volume.status = 'uploading'
            self.upload()
            self.db.freed = 0
            self.manager.message_api.create.reset_mock()
            self.done(**kwargs)
            self.done(**kwargs)
            self.assertEqual(1, self.db.freed)
            self.assertEqual(1 if kwargs else 0,
                             self.manager.message_api.create.call_count)

    def test_result_without_upload(self):
        for status in ('available', 'in-use', 'uploading', 'error'):
            self.db.volume.status = status
            self.done(error='x')
            self.done()
            self.done(declined=True)
        self.expect_nothing()
        self.stock.assert_not_called()

    def test_result_of_the_upload_before(self):
        """The volume is on its way to its next image."""
        self.upload()
        self.done()
        self.db.volume.status = 'uploading'
        self.db.marks = {manager.MARK: base.OTHER}
        self.done()
        self.assertEqual(1, self.db.freed)

    def test_result_after_a_crash_before_the_mark_was_removed(self):
        self.upload()
        self.db.volume.status = 'available'
        self.done(error='x')
        self.expect_nothing()

    def test_result_after_the_volume(self):
        self.upload()
        self.get.side_effect = exception.VolumeNotFound(volume_id='x')
        self.done()
        self.expect_nothing()

    def test_newer_workers_tell_more(self):
        self.upload()
        self.done(strategy='clone-flatten', reason='none')
        self.assertEqual(1, self.db.freed)

    def test_status_is_set_even_if_the_rest_fails(self):
        self.upload()
        self.manager.message_api.create.side_effect = ValueError
        self.assertRaises(ValueError, self.done, error='x')
        self.assertEqual(1, self.db.freed)

    # handed back

    def test_declined(self):
        self.upload()
        self.done(declined=True)
        self.stock.assert_called_once_with(
            self.manager, self.context, base.VOLUME, base.META)
        self.assertEqual({}, self.db.marks)
        self.expect_nothing()

    def test_declined_twice_is_copied_once(self):
        self.upload()
        self.done(declined=True)
        self.done(declined=True)
        self.stock.assert_called_once()

    def test_declined_after_a_restart(self):
        self.upload()
        self.manager = self.new()
        received = base.request('FROM-WORKER')
        self.done(received, declined=True)
        self.stock.assert_called_once_with(
            self.manager, received, base.VOLUME, base.META)

    def test_declined_after_both_were_restarted(self):
        self.upload()
        self.manager = self.new()
        self.done(declined=True)
        self.stock.assert_not_called()
        self.assertEqual(1, self.db.freed)
        self.manager.message_api.create.assert_called_once()

    def test_declined_with_our_own_credentials(self):
        self.upload()
        self.manager = self.new()
        with mock.patch.object(credentials, '_service_context',
                               return_value=mock.sentinel.own):
            self.manager._unmark = mock.Mock()
            self.done(declined=True)
        self.stock.assert_called_once_with(
            self.manager, mock.sentinel.own, base.VOLUME, base.META)

    # what we rely on

    def test_cinder_still_has_what_we_use(self):
        for name in ('_delete_image', 'copy_volume_to_image',
                     'service_topic_queue'):
            self.assertTrue(hasattr(stock_manager.VolumeManager, name), name)
