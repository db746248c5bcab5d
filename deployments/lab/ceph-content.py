"""Content of the lab's Ceph, over one connection (each call of the ceph command line costs most of a second).

Usage, with CEPH_CONF set:
  ceph-content.py osds DIRECTORY COUNT   make the ids of COUNT OSDs known; their uuids are in DIRECTORY/osdN/uuid
  ceph-content.py seen                   print which incarnation of each daemon the monitor knows
  ceph-content.py joined SEEN DAEMON...  wait until it knows a newer incarnation of each DAEMON than SEEN, and until
                                         each that is an OSD serves what clients ask of it
  ceph-content.py pools COUNT            wait for COUNT OSDs, make the pools, wait until every PG is active+clean
All are idempotent, and give up after 120 seconds.
"""
import json
import os
import sys
import time

import rados
import rbd

POOLS = ('volumes', 'images', 'images2')
PGS = 32
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
    for osd in range(int(count)):
        with open('%s/osd%d/uuid' % (directory, osd)) as f:
            ask(cluster, 'osd new', uuid=f.read().strip(), id=osd)


def seen(cluster):
    """Daemon -> a value that changes each time it joins; only what is up and usable."""
    osds = ask(cluster, 'osd dump')['osds']
    known = {'ceph-osd%d' % o['osd']: o['up_from'] for o in osds if o['up']}
    mgr = ask(cluster, 'mgr dump')
    if mgr['available']:
        known['ceph-mgr'] = mgr['active_gid']
    return known


def wait_joined(cluster, before, daemons):
    before = json.loads(before)

    def joined():
        known = seen(cluster)
        return all(d in known and known[d] != before.get(d) for d in daemons)
    wait_for(' '.join(daemons) + ' up', joined)


def tell(cluster, osd, prefix, **args):
    """What the OSD says; nothing if it does not answer, as one that is on its way down or up."""
    code, out, _ = cluster.osd_command(osd, json.dumps({'prefix': prefix, 'format': 'json', **args}), b'', timeout=5)
    return json.loads(out) if not code and out else {}


def laggy(cluster, osd):
    """The PGs of the OSD that let clients wait because their read lease ran out.

    A PG of one copy that was asked for something while it became active stays so for ever: the state is left when another
    copy acknowledges the next lease (https://tracker.ceph.com/issues/80404), and there is none. That leases run out later,
    because a renewal was lost, is kept away by the read_lease_ratio in ceph.conf.
    """
    ops = tell(cluster, osd, 'dump_ops_in_flight').get('ops', [])
    waiting = {o['description'].split()[1] for o in ops if o['type_data']['flag_point'] == 'waiting for readable'}
    return {pg for pg in waiting if 'laggy' in tell(cluster, osd, 'query', pgid=pg).get('state', '')}


def wait_serving(cluster, osds):
    """Give each laggy OSD a new interval, which is what ends that state, and wait until none is left.

    Three looks in a row, as it takes the clients a moment to come back with their requests.
    """
    good = 0

    def serving():
        nonlocal good
        stuck = [osd for osd in osds if laggy(cluster, osd)]
        for osd in stuck:
            print('ceph: osd.%d has a laggy PG; told to join anew' % osd, file=sys.stderr)
            before = json.dumps(seen(cluster))
            ask(cluster, 'osd down', ids=[str(osd)])
            wait_joined(cluster, before, ['ceph-osd%d' % osd])
        good = 0 if stuck else good + 1
        time.sleep(0.4)
        return good >= 3
    wait_for('OSDs that serve: ' + ' '.join(map(str, osds)), serving)


def clean(cluster):
    # All PGs count, also those of the pools that Ceph makes for itself (device_health_metrics, .mgr).
    summary = ask(cluster, 'pg stat')['pg_summary']
    states = {s['name']: s['num'] for s in summary['num_pg_by_state']}
    return summary['num_pgs'] >= PGS * len(POOLS) and states.get('active+clean') == summary['num_pgs']


def make_pools(cluster, count):
    wait_for(count + ' OSDs up', lambda: ask(cluster, 'osd stat')['num_up_osds'] == int(count))
    missing = sorted(set(POOLS) - set(cluster.list_pools()))
    for pool in missing:
        ask(cluster, 'osd pool create', pool=pool, pg_num=PGS, pgp_num=PGS)
    for pool in POOLS:  # not only the missing: one that was made may have been left without this
        with cluster.open_ioctx(pool) as io:
            if 'rbd' not in io.application_list():
                rbd.RBD().pool_init(io, True)
    wait_for('all PGs active+clean', lambda: clean(cluster))


def main():
    what, args = sys.argv[1], sys.argv[2:]
    patience = {'client_mount_timeout': '30', 'rados_mon_op_timeout': '60'}  # else five minutes, and for ever
    with rados.Rados(conffile=os.environ['CEPH_CONF'], conf=patience, name='client.admin') as cluster:
        if what == 'osds':
            add_osds(cluster, *args)
        elif what == 'seen':
            print(json.dumps(seen(cluster)))
        elif what == 'joined':
            wait_joined(cluster, args[0], args[1:])
            wait_serving(cluster, [int(d[len('ceph-osd'):]) for d in args[1:] if d.startswith('ceph-osd')])
        else:
            make_pools(cluster, *args)


main()
