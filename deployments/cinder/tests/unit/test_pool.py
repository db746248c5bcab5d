import json

from oslo_config import cfg
import oslo_messaging as messaging

from cinderlift_cinder import options
from cinderlift_cinder import pool

from tests.unit import base


class PoolTest(base.TestCase):
    def test_cast(self):
        ctxt = base.request()
        done = {'exchange': 'x', 'routing_key': 'k', 'method': 'm'}
        pool.cast(ctxt, base.volume(), base.META, done=done)
        kind, client, sent_ctxt, method, args = self.bus.sent[0]
        self.assertEqual(('cast', 'copy_volume_to_image'), (kind, method))
        self.assertIs(ctxt, sent_ctxt)
        self.assertEqual('cinder-image-upload', client.target.topic)
        self.assertEqual('3.0', client.target.version)
        self.assertIsNone(client.target.server)
        self.assertTrue(client.prepared['transport_options'].at_least_once)
        self.assertEqual(base.VOLUME, args['volume_id'])
        self.assertEqual(base.META, args['image_meta'])
        self.assertEqual(done, args['done'])

    def test_cast_without_done_sends_none(self):
        pool.cast(base.request(), base.volume(), base.META)
        self.assertEqual({'volume_id', 'image_meta', 'volume'},
                         set(self.bus.sent[0][4]))

    def test_facts_are_plain(self):
        facts = pool.facts(base.volume(encryption_key_id=base.OTHER))
        self.assertEqual(facts, json.loads(json.dumps(facts)))
        self.assertEqual('volume-' + base.VOLUME, facts['name'])
        self.assertEqual(base.OTHER, facts['encryption_key_id'])

    def test_facts_of_a_migrated_volume(self):
        facts = pool.facts(base.volume(_name_id=base.OTHER))
        self.assertEqual('volume-' + base.OTHER, facts['name'])

    def test_call(self):
        self.config.config(group='cinderlift', call_timeout=100,
                           call_monitor_timeout=10, topic='t')
        self.bus.answer = {'declined': False}
        self.assertEqual({'declined': False},
                         pool.call(base.request(), base.volume(), base.META))
        kind, client, _ctxt, method, args = self.bus.sent[0]
        self.assertEqual(('call', 'copy_volume_to_image'), (kind, method))
        self.assertEqual('t', client.target.topic)
        self.assertEqual(100, client.prepared['timeout'])
        self.assertEqual(10, client.prepared['call_monitor_timeout'])
        self.assertTrue(client.prepared['transport_options'].at_least_once)
        self.assertNotIn('done', args)

    def test_call_answered_with_nothing(self):
        self.assertEqual(
            {}, pool.call(base.request(), base.volume(), base.META))


class PrepareTest(base.TestCase):
    def test_oslo_keeps_the_mandatory_flag_over_prepare(self):
        """pool.call prepares twice; the second must keep the first's."""
        transport = messaging.get_rpc_transport(cfg.ConfigOpts(), 'fake://')
        client = messaging.RPCClient(
            transport, messaging.Target(topic='t', version='3.0'))
        first = client.prepare(
            transport_options=messaging.TransportOptions(at_least_once=True))
        second = first.prepare(timeout=1, call_monitor_timeout=1)
        self.assertTrue(second.transport_options.at_least_once)


class OptionsTest(base.TestCase):
    def test_generator_lists_them_with_help(self):
        (group, listed), = options.list_opts()
        self.assertEqual('cinderlift', group)
        self.assertEqual({'enabled', 'topic', 'call_timeout',
                          'call_monitor_timeout', 'use_service_user'},
                         {o.name for o in listed})
        self.assertTrue(all(o.help for o in listed))

    def test_bad_topic(self):
        with self.assertRaises(ValueError):
            self.config.config(group='cinderlift', topic='a b')
