"""Content of the lab's Ceph, over one connection (each call of the ceph command line costs most of a second).

Usage: ceph-content.py osds|pools DIRECTORY COUNT, with CEPH_CONF set.
  osds   make the ids of COUNT OSDs known; their uuids are in DIRECTORY/osdN/uuid
  pools  wait for COUNT OSDs, make the pools, wait until every PG is active+clean
Both are idempotent.
"""
import json
import os
import sys
import time

import rados
import rbd

POOLS = ('volumes', 'images', 'images2')
DEADLINE = time.monotonic() + 120


def ask(cluster, prefix, **args):
    code, out, message = cluster.mon_command(json.dumps({'prefix': prefix, 'format': 'json', **args}), b'')
    if code:
        sys.exit('%s: %s (%d)' % (prefix, message, code))
    return json.loads(out) if out else None


def wait_for(what, condition):
    while not condition():
        if time.monotonic() > DEADLINE:
            sys.exit('not within 120 s: ' + what)
        time.sleep(0.1)


def add_osds(cluster, directory, count):
    for osd in range(count):
        with open('%s/osd%d/uuid' % (directory, osd)) as f:
            ask(cluster, 'osd new', uuid=f.read().strip(), id=osd)


def clean(cluster):
    # All PGs count, also those of the pools that Ceph makes for itself (device_health_metrics, .mgr).
    summary = ask(cluster, 'pg stat')['pg_summary']
    states = {s['name']: s['num'] for s in summary['num_pg_by_state']}
    return summary['num_pgs'] >= 32 * len(POOLS) and states.get('active+clean') == summary['num_pgs']


def make_pools(cluster, count):
    wait_for('%d OSDs up' % count, lambda: ask(cluster, 'osd stat')['num_up_osds'] == count)
    missing = set(POOLS) - set(cluster.list_pools())
    for pool in missing:
        ask(cluster, 'osd pool create', pool=pool, pg_num=32, pgp_num=32)
    for pool in missing:
        with cluster.open_ioctx(pool) as io:
            rbd.RBD().pool_init(io, True)
    wait_for('all PGs active+clean', lambda: clean(cluster))


def main():
    what, directory, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    with rados.Rados(conffile=os.environ['CEPH_CONF'], name='client.admin') as cluster:
        if what == 'osds':
            add_osds(cluster, directory, count)
        else:
            make_pools(cluster, count)


main()
