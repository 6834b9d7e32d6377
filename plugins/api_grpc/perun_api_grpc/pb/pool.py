"""The descriptor pool of this package's messages.

It is not the process-wide one, where the bare file names of the definitions (``errors.proto`` …) could collide with
those of other software in the same process.
"""

from __future__ import annotations

from typing import Final

from google.protobuf.descriptor_pool import DescriptorPool

POOL: Final = DescriptorPool()


def Default() -> DescriptorPool:
    """The pool, under the name by which the generated stubs ask for it."""
    return POOL
