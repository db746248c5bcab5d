"""Unit tests: run with the Python that has Cinder.

    python3 -m unittest discover -t . -s tests/unit

They use Cinder's real classes with its database, its bus and Glance replaced,
so a class or a method that a release of Cinder no longer has fails here.
"""

import logging

from cinder import objects

logging.getLogger().addHandler(logging.NullHandler())
objects.register_all()
