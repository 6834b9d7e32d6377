"""State apps: rules for channels that carry data of their own (PROTOCOL.md 5.7).

Channels without app need none of this; apps come in through the same hook as anybody's.
"""

from .registry import AppRegistry, PaymentApp

__all__ = ["AppRegistry", "PaymentApp"]
