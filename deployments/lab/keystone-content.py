"""Content of the lab's Keystone: projects, users, roles, catalog. Idempotent.

Usage: keystone-content.py AUTH_URL PASSWORD GLANCE_URL CINDER_URL

Plain HTTP and nothing but the standard library: openstacksdk takes longer to import than all of this takes to run.
"""
import json
import sys
import urllib.request

AUTH, PASSWORD, GLANCE, CINDER = sys.argv[1:5]
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
TOKEN = {}


def call(method, path, body=None):
    data = json.dumps(body).encode() if body is not None else None
    headers = {'Content-Type': 'application/json', **TOKEN}
    request = urllib.request.Request(AUTH + path, data, headers, method=method)
    with OPENER.open(request, timeout=60) as answer:
        text = answer.read()
        return answer.headers, json.loads(text) if text else None


def log_in():
    user = {'name': 'admin', 'domain': {'id': 'default'}, 'password': PASSWORD}
    scope = {'project': {'name': 'admin', 'domain': {'id': 'default'}}}
    identity = {'methods': ['password'], 'password': {'user': user}}
    headers, _ = call('POST', '/auth/tokens', {'auth': {'identity': identity, 'scope': scope}})
    TOKEN['X-Auth-Token'] = headers['X-Subject-Token']


def ensure(kind, name, **fields):
    """The id of the KIND (singular) called NAME, made with FIELDS when it is not there."""
    for have in call('GET', '/%ss?name=%s' % (kind, name))[1][kind + 's']:
        return have['id']
    return call('POST', '/%ss' % kind, {kind: {'name': name, **fields}})[1][kind]['id']


def account(user, project, *roles):
    user_id = ensure('user', user, domain_id='default', password=PASSWORD)
    project_id = ensure('project', project, domain_id='default')
    for role in roles:
        call('PUT', '/projects/%s/users/%s/roles/%s' % (project_id, user_id, ensure('role', role)))


def endpoints(name, kind, url):
    service_id = ensure('service', name, type=kind)
    have = call('GET', '/endpoints?service_id=' + service_id)[1]['endpoints']
    for interface in {'public', 'internal', 'admin'} - {e['interface'] for e in have}:
        call('POST', '/endpoints', {'endpoint': {
            'service_id': service_id, 'interface': interface, 'url': url, 'region_id': 'RegionOne'}})


log_in()
for service_user in ('glance', 'cinder', 'cinderlift'):
    account(service_user, 'service', 'admin', 'service')
account('demo', 'demo', 'member')
account('other', 'other', 'member')
endpoints('glance', 'image', GLANCE)
endpoints('cinderv3', 'volumev3', CINDER + '/v3/%(project_id)s')
