"""Plugs cinderlift into Cinder: each module holds one class that cinder.conf can name.

manager.VolumeManager   [DEFAULT] volume_manager      cinder-volume casts and is told the result
api.API                 [DEFAULT] volume_api_class    cinder-api casts, cinder-volume is not involved
driver.RBDDriver        [<backend>] volume_driver     the RBD driver calls and waits

Use one of them. See README.md.
"""
