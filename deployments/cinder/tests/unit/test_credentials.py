import copy
from unittest import mock

from keystoneauth1 import exceptions as ks_exc

from cinder.image import glance

from cinderlift_cinder import credentials

from tests.unit import base


class ContextsTest(base.TestCase):
    def test_pop_forgets(self):
        contexts = credentials.Contexts()
        contexts.put('v', 'i', 'c')
        self.assertIsNone(contexts.pop('v', 'other'))
        self.assertEqual('c', contexts.pop('v', 'i'))
        self.assertIsNone(contexts.pop('v', 'i'))

    def test_oldest_go_first(self):
        contexts = credentials.Contexts(limit=2)
        for i in 'abc':
            contexts.put(i, i, i)
        self.assertEqual([None, 'b', 'c'],
                         [contexts.pop(i, i) for i in 'abc'])


class UsableTest(base.TestCase):
    def setUp(self):
        super().setUp()
        self.plugin = self.patch(
            'cinder.service_auth.get_service_auth_plugin', return_value=None)
        self.session = self.patch(
            'keystoneauth1.loading.load_session_from_conf_options')
        self.session.return_value.get_token.return_value = 'SERVICE'
        self.session.return_value.get_endpoint.side_effect = (
            lambda interface, **kw: 'http://%s:9292' % interface)

    def test_order(self):
        own, cast, none = (base.request('A'), base.request('B'),
                           base.request(None))
        for remembered, received, want in (
                (own, cast, own), (None, cast, cast), (none, cast, cast),
                (own, none, own), (None, none, None), (none, none, None)):
            self.assertIs(want, credentials.usable(remembered, received))

    def test_own_credentials(self):
        self.plugin.return_value = mock.Mock()
        self.plugin.return_value.get_token.return_value = 'SERVICE'
        received = base.request(None)
        context = credentials.usable(None, received)
        self.assertIsNot(received, context)
        self.assertEqual('p', context.project_id)
        self.assertTrue(glance.GlanceImageService._is_image_available(
            mock.Mock(), context, {'owner': 'p'}))
        self.assertEqual('SERVICE', context.get_auth_plugin().get_token(None))
        self.assertEqual(('public:9292', False),
                         next(glance.get_api_servers(context)))
        # An identity plugin holds a lock, which deepcopy can't copy.
        self.assertIsNotNone(context.elevated().user_auth_plugin)
        self.assertIs(context.user_auth_plugin,
                      copy.deepcopy(context.user_auth_plugin))

    def test_not_wanted(self):
        self.config.config(group='cinderlift', use_service_user=False)
        self.plugin.return_value = mock.Mock()
        self.assertIsNone(credentials.usable(None, base.request(None)))

    def test_keystone_says_no(self):
        self.plugin.return_value = mock.Mock()
        self.session.return_value.get_endpoint.side_effect = (
            ks_exc.Unauthorized())
        with self.assertLogs('cinderlift_cinder.credentials', 'WARNING'):
            self.assertIsNone(credentials.usable(None, base.request(None)))
