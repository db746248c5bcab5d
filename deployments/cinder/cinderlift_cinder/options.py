"""The options in group [cinderlift] of cinder.conf."""

from oslo_config import cfg

GROUP = 'cinderlift'

OPTIONS = [
    cfg.BoolOpt('enabled',
                default=True,
                help='Offer uploads to the cinderlift workers. When false, '
                     'Cinder makes every image itself, and uploads that are '
                     'under way are still brought to their end. To switch '
                     'the workers off, set this first and take the class '
                     'out of cinder.conf when no volume is "uploading" any '
                     'more.'),
    cfg.StrOpt('topic',
               default='cinder-image-upload',
               regex=r'^[A-Za-z0-9_.:-]{1,200}$',
               help='Topic, and so the name of the queue, on the control '
                    'exchange from which the workers take requests. Must '
                    'be the same as in their configuration.'),
    cfg.IntOpt('call_timeout',
               default=21600,
               min=60,
               help='volume_driver only: seconds that cinder-volume waits '
                    'for one image in all. Then the upload fails: the '
                    'volume becomes available and the image is deleted.'),
    cfg.IntOpt('call_monitor_timeout',
               default=300,
               min=4,
               help='volume_driver only: seconds without a sign of life '
                    'after which the upload fails. A worker gives one '
                    'twice in this time, but none while a request waits '
                    'for a free worker, so it must be longer than requests '
                    'may have to wait.'),
    cfg.BoolOpt('use_service_user',
                default=True,
                help='volume_manager only: when the workers hand an upload '
                     'back and the token of its user is gone (both '
                     'cinder-volume and the worker were restarted '
                     'meanwhile), upload with the credentials of '
                     '[service_user], if send_service_user_token is set '
                     'there. When false, such an upload fails.'),
]


def register(conf):
    """Make the options known to conf. Doing it twice is fine."""
    conf.register_opts(OPTIONS, group=GROUP)


def list_opts():
    """For oslo-config-generator --namespace cinderlift_cinder."""
    return [(GROUP, OPTIONS)]
