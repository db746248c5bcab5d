"""The workers, as seen from Cinder: a topic on the message bus.

Every request carries Cinder's own method copy_volume_to_image, version 3.0,
and two more arguments: `volume`, plain facts, and `done`, where to cast the
result. It is published with the AMQP mandatory flag (at_least_once), so that
oslo.messaging raises MessageUndeliverable when no queue is bound to the topic.
Without it the broker would drop the message and report success.
"""

from oslo_config import cfg
import oslo_messaging as messaging

from cinder import rpc

from cinderlift_cinder import options

CONF = cfg.CONF
options.register(CONF)

METHOD = 'copy_volume_to_image'
VERSION = '3.0'


def enabled():
    return CONF.cinderlift.enabled


def facts(volume):
    """What a worker may want to know of the volume, as plain JSON types.

    Workers take them as hints: they ask Cinder's REST API before they act.
    """
    return {
        'id': volume.id,
        'name': volume.name,
        'host': volume.host,
        'cluster_name': volume.cluster_name,
        'size': volume.size,
        'status': volume.status,
        'attach_status': volume.attach_status,
        'encryption_key_id': volume.encryption_key_id,
        'volume_type_id': volume.volume_type_id,
        'project_id': volume.project_id,
    }


def cast(context, volume, image_meta, done=None):
    """Offer the upload to the workers and return.

    :param done: dict of exchange, routing_key and method: where the result is
                 to be cast to; None: the worker frees the volume over REST
    :raises MessageUndeliverable: there is no queue: nobody has got it
    """
    args = {'volume': facts(volume)}
    if done is not None:
        args['done'] = done
    _client().cast(context, METHOD, volume_id=volume.id,
                   image_meta=image_meta, **args)


def call(context, volume, image_meta):
    """Have the workers make the image and wait for it.

    The mandatory flag works for calls as for casts: the request is published
    through the same topic_send (oslo.messaging 14.0.3 and 16.1.0,
    _drivers/amqpdriver.py _send).

    :returns: dict; {'declined': True} when the workers can't make it
    :raises MessageUndeliverable: there is no queue: nobody has got it
    :raises MessagingTimeout: no sign of life, or not ready in time; a worker
                              may still be at it
    """
    client = _client().prepare(
        timeout=CONF.cinderlift.call_timeout,
        call_monitor_timeout=CONF.cinderlift.call_monitor_timeout)
    return client.call(context, METHOD, volume_id=volume.id,
                       image_meta=image_meta, volume=facts(volume)) or {}


def _client():
    # Made anew for each request: it is cheap, the connections belong to
    # the transport, and that does not exist yet when this module is loaded.
    target = messaging.Target(topic=CONF.cinderlift.topic, version=VERSION)
    options = messaging.TransportOptions(at_least_once=True)
    return rpc.get_client(target).prepare(transport_options=options)
