"""volume_driver: the RBD driver has the workers upload, and waits.

cinder-volume keeps a thread of its RPC executor per upload, as without
cinderlift, and does all its own clean-up when this method returns or raises.
"""

from oslo_config import cfg
from oslo_log import log as logging
import oslo_messaging as messaging

from cinder import exception
from cinder.volume.drivers import rbd

from cinderlift_cinder import pool

CONF = cfg.CONF
LOG = logging.getLogger(__name__)


class RBDDriver(rbd.RBDDriver):
    """Cinder's RBD driver, with uploads offered to the workers."""

    def copy_volume_to_image(self, context, volume, image_service, image_meta):
        if self._uploaded_by_pool(context, volume, image_meta):
            return
        super().copy_volume_to_image(context, volume, image_service,
                                     image_meta)

    def _uploaded_by_pool(self, context, volume, image_meta):
        """Return whether the workers have made the image.

        A worker's failure arrives as Cinder's own exception and is passed on.
        False only where no worker is at it or will ever be: never after a
        timeout, where a worker may still be writing to the same image.
        """
        if not pool.enabled():
            return False
        ids = {'volume': volume.id, 'image': image_meta['id']}
        try:
            answer = pool.call(context, volume, image_meta)
        except messaging.MessageUndeliverable:
            LOG.warning('No cinderlift worker has declared its queue: '
                        'uploading volume %(volume)s to image %(image)s here.',
                        ids)
            return False
        except messaging.MessagingTimeout:
            LOG.error('No answer from the cinderlift workers about the upload '
                      'of volume %(volume)s to image %(image)s: the upload '
                      'fails. Are workers running, and is [cinderlift] '
                      'call_monitor_timeout longer than requests wait for a '
                      'free one?', ids)
            raise exception.ImageCopyFailure(
                reason='no answer from the cinderlift workers')
        if answer.get('declined'):
            LOG.warning('The cinderlift workers declined to upload volume '
                        '%(volume)s to image %(image)s, uploading it here: '
                        '%(reason)s', dict(ids, reason=answer.get('reason')))
            return False
        return True
