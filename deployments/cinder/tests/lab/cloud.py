"""The lab's cloud through its public APIs, with the standard library alone."""

import json
import os
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid

HERE = os.path.dirname(os.path.abspath(__file__))


def environment():
    """Read the file that the lab wrote; there is no test without it."""
    with open(os.environ['CINDERLIFT_LAB_ENV']) as f:
        pairs = (line.strip().split('=', 1) for line in f if '=' in line)
        return {key: value.strip("'") for key, value in pairs}


class Cloud:
    def __init__(self):
        self.env = environment()
        self.token, self.project = self._login('DEMO')
        self.admin, self.admin_project = self._login('ADMIN')

    def lab(self, command, *args):
        subprocess.run([self.env['LAB_COMMAND'], command,
                        self.env['LAB_GENERATION'], *args], check=True,
                       stdout=subprocess.DEVNULL)

    def stub(self):
        url = urllib.parse.urlsplit(self.env['LAB_TRANSPORT_URL'])
        return Stub([self.env['LAB_COMMAND'], 'exec',
                     self.env['LAB_GENERATION'], 'python3',
                     os.path.join(HERE, 'stub.py'),
                     '%s:%d' % (url.hostname, url.port), url.username,
                     url.password])

    def _login(self, who):
        def of(what):
            return self.env['LAB_%s_%s' % (who, what)]
        domain = {'id': 'default'}
        body = {'auth': {
            'identity': {'methods': ['password'], 'password': {'user': {
                'name': of('USER'), 'domain': domain,
                'password': of('PASSWORD')}}},
            'scope': {'project': {'name': of('PROJECT'), 'domain': domain}}}}
        url = self.env['OS_AUTH_URL'] + '/auth/tokens'
        _code, headers, answer = self._http('POST', url, json.dumps(body))
        return headers['X-Subject-Token'], answer['token']['project']['id']

    def _http(self, method, url, body=None, token=None,
              content='application/json'):
        headers = {'Content-Type': content,
                   'OpenStack-API-Version': 'volume 3.59'}
        if token:
            headers['X-Auth-Token'] = token
        if isinstance(body, str):
            body = body.encode()
        request = urllib.request.Request(url, body, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as r:
                raw = r.read()
                return r.status, r.headers, json.loads(raw) if raw else None
        except urllib.error.HTTPError as e:
            return e.code, e.headers, None

    def cinder(self, method, path, body=None, admin=False):
        url = '%s/v3/%s%s' % (
            self.env['LAB_CINDER_URL'],
            self.admin_project if admin else self.project, path)
        return self._http(method, url, body and json.dumps(body),
                          self.admin if admin else self.token)

    def glance(self, method, path, body=None,
               content='application/json'):
        return self._http(method, self.env['LAB_GLANCE_URL'] + '/v2' + path,
                          body, self.token, content)

    def volume(self, size=1):
        _code, _headers, answer = self.cinder('POST', '/volumes', {
            'volume': {'size': size, 'name': 'glue-' + uuid.uuid4().hex[:8]}})
        volume_id = answer['volume']['id']
        self.until(lambda: self.status(volume_id) == 'available')
        return volume_id

    def status(self, volume_id):
        return self.cinder('GET', '/volumes/' + volume_id)[2]['volume'][
            'status']

    def delete(self, volume_id):
        self.cinder('DELETE', '/volumes/' + volume_id)

    def upload(self, volume_id):
        code, _headers, answer = self.cinder(
            'POST', '/volumes/%s/action' % volume_id,
            {'os-volume_upload_image': {
                'image_name': 'glue', 'disk_format': 'raw',
                'container_format': 'bare'}})
        assert code == 202, code
        return answer['os-volume_upload_image']['image_id']

    def image(self, image_id):
        """Return the image's status, or 404."""
        code, _headers, answer = self.glance('GET', '/images/' + image_id)
        return answer['status'] if code == 200 else code

    def fill(self, image_id):
        """Make the image active, as a worker would."""
        code, _headers, _answer = self.glance(
            'PUT', '/images/%s/file' % image_id, b'x' * 1024,
            'application/octet-stream')
        assert code == 204, code

    def messages(self, volume_id):
        _code, _headers, answer = self.cinder(
            'GET', '/messages?resource_uuid=' + volume_id)
        return [m for m in answer['messages']
                if m['resource_uuid'] == volume_id]

    def until(self, condition, seconds=180):
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                raise AssertionError('not in %d seconds' % seconds)
            time.sleep(0.2)


class Stub:
    """The other end of stub.py."""

    def __init__(self, command):
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __getattr__(self, op):
        def order(**kwargs):
            self._process.stdin.write(json.dumps(dict(kwargs, op=op)) + '\n')
            self._process.stdin.flush()
            return json.loads(self._process.stdout.readline())
        return order

    def close(self):
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()
