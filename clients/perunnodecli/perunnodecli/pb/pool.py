"""The descriptor pool of this package's messages.

The definitions have common file names (``errors.proto`` …) and may be registered by other software of the same
process; in a pool of our own they cannot collide.
"""

from __future__ import annotations

from typing import Final

from google.protobuf.descriptor_pool import DescriptorPool

POOL: Final = DescriptorPool()


def Default() -> DescriptorPool:
    """The pool, under the name by which generated code asks for it."""
    return POOL
