"""A hand on the message bus: does what it is told, one JSON object per line.

Runs where py-amqp is (in the lab), beside Cinder, and knows nothing of
oslo.messaging: the tests write every byte themselves, as a worker would.

{"op": "declare", "queue": q}     declare a durable queue, bind it to the
                                  control exchange under its own name
{"op": "delete", "queue": q}
{"op": "take", "queue": q}        wait for a message, acknowledge it
{"op": "send", "exchange": x, "key": k, "message": m}
                                  publish in an oslo envelope, mandatory;
                                  answers whether it was routed
"""

import json
import sys
import time

import amqp

EXCHANGE = 'openstack'


class Stub:
    def __init__(self, host, user, password):
        self.connection = amqp.Connection(host, user, password,
                                          confirm_publish=True)
        self.connection.connect()
        self.channel = self.connection.channel()

    def declare(self, queue):
        self.channel.exchange_declare(EXCHANGE, 'topic', passive=True)
        self.channel.queue_declare(queue, durable=True, auto_delete=False)
        self.channel.queue_bind(queue, EXCHANGE, queue)
        self.channel.queue_purge(queue)

    def delete(self, queue):
        self.channel.queue_delete(queue)

    def take(self, queue, seconds=60):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            m = self.channel.basic_get(queue, no_ack=True)
            if m:
                envelope = json.loads(m.body)
                return {'message': json.loads(envelope['oslo.message']),
                        'expiration': m.properties.get('expiration'),
                        'key': m.delivery_info['routing_key']}
            time.sleep(0.1)
        return None

    def send(self, exchange, key, message):
        body = json.dumps({'oslo.version': '2.0',
                           'oslo.message': json.dumps(message)})
        returned = []
        self.channel.events['basic_return'].add(
            lambda *args: returned.append(args))
        self.channel.basic_publish(
            amqp.Message(body, content_type='application/json',
                         content_encoding='utf-8', delivery_mode=2),
            exchange=exchange, routing_key=key, mandatory=True)
        return not returned


def main():
    stub = Stub(*sys.argv[1:4])
    for line in sys.stdin:
        order = json.loads(line)
        answer = getattr(stub, order.pop('op'))(**order)
        print(json.dumps(answer), flush=True)


if __name__ == '__main__':
    main()
