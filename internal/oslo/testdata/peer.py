"""A Python peer on the bus: server, notification listener and client in one process.

usage: peer.py TRANSPORT_URL EXCHANGE TOPIC

Says "started" when its server and listener are up, then calls and casts to TOPIC,
and prints what came of it as one JSON object.
"""
import json
import queue
import sys
import time

from oslo_config import cfg
import oslo_messaging as om

try:
    from cinder import exception as remote
except ImportError:  # a stand-in of the same name
    import types
    remote = types.ModuleType('cinder.exception')

    class ImageNotFound(Exception):
        def __init__(self, image_id):
            super().__init__('Image %s could not be found.' % image_id)
            self.kwargs = {'image_id': image_id}
    ImageNotFound.__module__ = 'cinder.exception'
    remote.ImageNotFound = ImageNotFound
    sys.modules['cinder'] = types.ModuleType('cinder')
    sys.modules['cinder.exception'] = remote

URL, EXCHANGE, TOPIC = sys.argv[1:4]
om.set_transport_defaults(EXCHANGE)
conf = cfg.CONF  # the options of oslo_messaging_metrics are registered nowhere else
conf([], project='peer')
transport = om.get_rpc_transport(conf, url=URL, allowed_remote_exmods=['cinder.exception'])
notifications = om.get_notification_transport(conf, url=URL)
casts, events = queue.Queue(), queue.Queue()


class Server:
    target = om.Target(version='3.0')

    def image_upload_done(self, ctxt, **kwargs):
        casts.put([ctxt, kwargs])


class Listener:
    def info(self, ctxt, publisher_id, event_type, payload, metadata):
        events.put([ctxt, publisher_id, event_type, payload, metadata])


server = om.get_rpc_server(transport, om.Target(topic=TOPIC + '-py', server='peer'), [Server()], executor='threading')
server.start()
listener = om.get_notification_listener(
    notifications, [om.Target(topic=TOPIC + '-notifications')], [Listener()], executor='threading')
listener.start()
print('started', flush=True)

CONTEXT = {'request_id': 'req-11111111-2222-3333-4444-555555555555', 'auth_token': 'live-token', 'user_id': 'u', 'project_id': 'p'}
client = om.RPCClient(transport, om.Target(topic=TOPIC, version='1.5'), timeout=20)
sure = om.RPCClient(transport, om.Target(topic=TOPIC, version='1.5', ), timeout=20,
                    transport_options=om.TransportOptions(at_least_once=True))
out = {}


def attempt(name, function, *args, **kwargs):
    started = time.monotonic()
    try:
        out[name] = {'result': function(CONTEXT, *args, **kwargs)}
    except Exception as e:
        out[name] = {'type': type(e).__module__ + '.' + type(e).__name__, 'str': str(e),
                     'bases': [b.__name__ for b in type(e).__mro__],
                     'exc_type': getattr(e, 'exc_type', None), 'value': getattr(e, 'value', None)}
    out[name]['took'] = time.monotonic() - started


for _ in range(100):  # the other side may still be coming up
    attempt('cast at least once', sure.cast, 'note', n=1)
    if 'type' not in out['cast at least once']:
        break
    time.sleep(0.2)
attempt('call', client.call, 'echo', value={'name': 'Gr\u00fc\u00dfe \u2603', 'list': [1, None, 2.5]})
attempt('none', client.call, 'nothing')
attempt('exception', client.call, 'fail', image_id='image-1')
attempt('remote error', client.call, 'boom')
attempt('no such method', client.call, 'nope')
attempt('unsupported version', client.prepare(version='1.6').call, 'echo', value=1)
attempt('monitored', client.prepare(timeout=30, call_monitor_timeout=2).call, 'slow', seconds=5)
attempt('monitored, silent', client.prepare(timeout=30, call_monitor_timeout=2).call, 'silent', seconds=5)
attempt('ping', om.RPCClient(transport, om.Target(topic=TOPIC), timeout=20).call, 'oslo_rpc_server_ping')
attempt('cast', client.cast, 'note', n=2)
attempt('cast to nobody', om.RPCClient(transport, om.Target(topic=TOPIC + '-none'), transport_options=om.TransportOptions(
    at_least_once=True)).cast, 'note')
attempt('report', client.cast, 'report')
try:
    out['done'] = casts.get(timeout=20)
    out['event'] = events.get(timeout=20)
except queue.Empty:
    out['error'] = 'no cast or no notification'
server.stop()
listener.stop()
print(json.dumps(out), flush=True)
