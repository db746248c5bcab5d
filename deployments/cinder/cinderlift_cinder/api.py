"""volume_api_class: cinder-api offers uploads to the workers.

cinder-volume is not involved: the worker frees the volume over REST. When no
queue is bound, the request goes to cinder-volume as ever.
"""

from oslo_log import log as logging
import oslo_messaging as messaging

from cinder.volume import api as volume_api
from cinder.volume import rpcapi as volume_rpcapi

from cinderlift_cinder import pool

LOG = logging.getLogger(__name__)


class VolumeRPC(volume_rpcapi.VolumeAPI):
    """Cinder's own RPC client, but for one method."""

    def copy_volume_to_image(self, ctxt, volume, image_meta):
        if pool.enabled():
            try:
                pool.cast(ctxt, volume, image_meta)
                return
            except messaging.MessageUndeliverable:
                LOG.warning('No cinderlift worker has declared its queue: '
                            'cinder-volume uploads volume %(volume)s to image '
                            '%(image)s itself.',
                            {'volume': volume.id, 'image': image_meta['id']})
        super().copy_volume_to_image(ctxt, volume, image_meta)


class API(volume_api.API):
    """Cinder's volume API, with uploads offered to the workers."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.volume_rpcapi = VolumeRPC()
