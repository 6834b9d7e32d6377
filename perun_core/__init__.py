"""The core of a plugin-architected, multi-user payment-channel node for Perun channels on Ethereum."""

from typing import Final

__version__: Final = "0.1.0"
