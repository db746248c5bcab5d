"""volume_manager: cinder-volume offers uploads to the workers and goes on.

The result is cast back to the service that sent the request, or to another
member of its cluster: method image_upload_done. It does the clean-up that
Cinder's own copy_volume_to_image does at its end.
"""

from oslo_config import cfg
from oslo_log import log as logging
import oslo_messaging as messaging

from cinder.common import constants
from cinder import exception
from cinder.image import glance
from cinder.message import message_field
from cinder import objects
from cinder.volume.drivers import rbd
from cinder.volume import manager
from cinder.volume import volume_utils

from cinderlift_cinder import credentials
from cinderlift_cinder import pool

CONF = cfg.CONF
LOG = logging.getLogger(__name__)

# Admin metadata of a volume that the workers are uploading: the id of the
# image. The database keeps no other trace of which image an `uploading`
# volume goes to, and a result that comes twice must not free a volume that is
# on its way to its next image.
MARK = 'cinderlift_image'


class VolumeManager(manager.VolumeManager):
    """Cinder's volume manager, with uploads offered to the workers."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._contexts = credentials.Contexts()

    def copy_volume_to_image(self, context, volume_id, image_meta):
        if not self._offered(context, volume_id, image_meta):
            super().copy_volume_to_image(context, volume_id, image_meta)

    def image_upload_done(self, context, volume_id, image_meta, error=None,
                          declined=False, **later):
        """Clean up after an upload by the workers.

        Idempotent: it acts only while the volume is `uploading` to this very
        image. A crash half-way is what a crash of Cinder's own upload is.

        :param error: why it failed; None: the image is active
        :param declined: the workers can't do it and have touched nothing
        :param later: what newer workers tell besides; ignored
        """
        image_id = image_meta['id']
        remembered = self._contexts.pop(volume_id, image_id)
        if not self._waits_for(context, volume_id, image_id):
            LOG.info('Result of an upload that is not under way: volume '
                     '%(volume)s, image %(image)s.',
                     {'volume': volume_id, 'image': image_id})
            return
        usable = None
        if declined or error:
            usable = credentials.usable(remembered, context)
        if declined and usable:
            self._upload_here(usable, volume_id, image_meta)
            return
        if declined:
            error = ('declined by the workers, and without the token of its '
                     'user it can not be done here')
        self._finish(usable or context, volume_id, image_id, error)

    def _offered(self, context, volume_id, image_meta):
        """Return whether the workers have got the request."""
        if not (pool.enabled() and self._has_rbd_images()):
            return False
        image_id = image_meta['id']
        try:
            volume = objects.Volume.get_by_id(context, volume_id)
        except exception.VolumeNotFound:
            return False  # which Cinder's own method reports better
        self._mark(context, volume_id, image_id)
        # Before the cast: the result may be faster than the cast's confirm.
        self._contexts.put(volume_id, image_id, context)
        try:
            pool.cast(context, volume, image_meta, done=self._here())
        except messaging.MessageUndeliverable:
            LOG.warning('No cinderlift worker has declared its queue: '
                        'uploading volume %(volume)s to image %(image)s here.',
                        {'volume': volume_id, 'image': image_id})
            self._unmark(context, volume_id, image_id)
            return False
        except Exception as e:
            # The message may have arrived all the same, so nobody else
            # may begin. The worker finds no image and stops.
            self._finish(context, volume_id, image_id,
                         'offering it to the workers: %s' % e)
            raise
        LOG.info('Upload of volume %(volume)s to image %(image)s is with the '
                 'cinderlift workers.',
                 {'volume': volume_id, 'image': image_id})
        return True

    def _has_rbd_images(self):
        # volume_manager is one for all backends of a cinder-volume. An upload
        # through Cinder's own store is the operator's explicit wish.
        return (isinstance(self.driver, rbd.RBDDriver) and not
                self.driver.configuration.image_upload_use_cinder_backend)

    def _here(self):
        """Return where a result finds this service or its cluster.

        The names are those of the RPC servers in cinder/service.py. In a
        cluster any member will do: this one may never come back.
        """
        service = self.service_topic_queue
        return {
            'exchange': CONF.control_exchange,
            'routing_key': '%s.%s.%s' % (
                constants.VOLUME_TOPIC, service,
                volume_utils.extract_host(service, 'host')),
            'method': 'image_upload_done',
        }

    def _upload_here(self, context, volume_id, image_meta):
        LOG.warning('The cinderlift workers declined to upload volume '
                    '%(volume)s to image %(image)s, uploading it here.',
                    {'volume': volume_id, 'image': image_meta['id']})
        # First: a repeated result must not begin a second copy.
        self._unmark(context, volume_id, image_meta['id'])
        super().copy_volume_to_image(context, volume_id, image_meta)

    def _finish(self, context, volume_id, image_id, error):
        """End the upload as Cinder's own copy_volume_to_image does."""
        try:
            if error:
                self._report(context, volume_id, image_id, error)
                self._discard(context, image_id)
        finally:
            self.db.volume_update_status_based_on_attachment(context,
                                                             volume_id)
        self._unmark(context, volume_id, image_id)
        if not error:
            LOG.info('Upload of volume %(volume)s to image %(image)s '
                     'completed successfully.',
                     {'volume': volume_id, 'image': image_id})

    def _report(self, context, volume_id, image_id, error):
        LOG.error('Upload of volume %(volume)s to image %(image)s failed: '
                  '%(error)s',
                  {'volume': volume_id, 'image': image_id, 'error': error})
        self.message_api.create(
            context,
            message_field.Action.COPY_VOLUME_TO_IMAGE,
            resource_uuid=volume_id,
            detail=message_field.Detail.FAILED_TO_UPLOAD_VOLUME)

    def _discard(self, context, image_id):
        """Delete the image, which the worker has done already as a rule."""
        try:
            service, _id = glance.get_remote_image_service(context, image_id)
            service.show(context, image_id)
        except exception.ImageNotFound:
            return
        except Exception as e:
            LOG.warning('Image %(image)s of a failed upload could not be '
                        'looked at; it may have to be deleted by hand: '
                        '%(error)s', {'image': image_id, 'error': e})
            return
        self._delete_image(context, image_id, service)

    def _mark(self, context, volume_id, image_id):
        self.db.volume_admin_metadata_update(
            context.elevated(), volume_id, {MARK: image_id}, False)

    def _unmark(self, context, volume_id, image_id):
        self._contexts.pop(volume_id, image_id)
        self.db.volume_admin_metadata_delete(
            context.elevated(), volume_id, MARK)

    def _waits_for(self, context, volume_id, image_id):
        try:
            volume = objects.Volume.get_by_id(context.elevated(), volume_id)
        except exception.VolumeNotFound:
            return False
        marks = self.db.volume_admin_metadata_get(context.elevated(),
                                                  volume_id)
        return (volume.status == 'uploading' and
                marks.get(MARK) == image_id)
