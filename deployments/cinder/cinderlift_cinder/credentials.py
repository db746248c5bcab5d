"""Finding a context that Glance accepts, after the user's own is gone."""

import collections
import threading

from keystoneauth1 import exceptions as ks_exc
from keystoneauth1 import loading as ks_loading
from keystoneauth1 import plugin
from oslo_config import cfg
from oslo_log import log as logging

from cinder import service_auth

CONF = cfg.CONF
LOG = logging.getLogger(__name__)


class Contexts:
    """The contexts of uploads under way, in this process's memory alone.

    Bounded: the oldest go first. An upload whose context is gone is brought
    to its end all the same, see usable().
    """

    def __init__(self, limit=1000):
        self._limit = limit
        self._lock = threading.Lock()
        self._contexts = collections.OrderedDict()

    def put(self, volume_id, image_id, context):
        with self._lock:
            self._contexts[(volume_id, image_id)] = context
            while len(self._contexts) > self._limit:
                self._contexts.popitem(last=False)

    def pop(self, volume_id, image_id):
        """Return the context, or None, and forget it."""
        with self._lock:
            return self._contexts.pop((volume_id, image_id), None)


def usable(remembered, received):
    """Return the first context with a token, or None.

    In this order: the request's own, if this process still has it; the one
    that came with the result (a worker sends the token along when it hands an
    upload back and still has it); one with the credentials of [service_user].
    """
    for context in (remembered, received):
        if context is not None and context.auth_token:
            return context
    if not CONF.cinderlift.use_service_user:
        return None
    return _service_context(received)


def _service_context(received):
    """Return received with our own credentials for Glance, or None."""
    try:
        auth = service_auth.get_service_auth_plugin()
        if auth is None:
            return None
        session = ks_loading.load_session_from_conf_options(
            CONF, service_auth.SERVICE_USER_GROUP, auth=auth)
        context = received.deepcopy()
        context.service_catalog = _catalog(session)
        # Calls go through the plugin, which renews its token. This one only
        # shows Cinder's image code that the context is an authenticated one
        # (cinder/image/glance.py, _is_image_available).
        context.auth_token = session.get_token()
    except ks_exc.ClientException as e:
        LOG.warning('The credentials of [service_user] are of no use: %s', e)
        return None
    context.user_auth_plugin = _Shared(auth)
    return context


def _catalog(session):
    """Return Glance's endpoints in the form of a context's catalog."""
    region = getattr(CONF, 'os_region_name', None)
    urls = {}
    for interface in ('public', 'internal', 'admin'):
        urls[interface + 'URL'] = session.get_endpoint(
            service_type='image', interface=interface, region_name=region)
    return [{'type': 'image', 'name': 'glance', 'endpoints': [urls]}]


class _Shared(plugin.BaseAuthPlugin):
    """An auth plugin that survives RequestContext.deepcopy().

    Identity plugins hold a lock, which can't be copied, and elevated()
    copies the whole context.
    """

    def __init__(self, auth):
        super().__init__()
        self._auth = auth

    def __deepcopy__(self, memo):
        return self

    def get_token(self, session, **kwargs):
        return self._auth.get_token(session, **kwargs)

    def get_endpoint(self, session, **kwargs):
        return self._auth.get_endpoint(session, **kwargs)

    def invalidate(self):
        return self._auth.invalidate()
