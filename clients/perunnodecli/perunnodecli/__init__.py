"""A command-line client of a Perun node: an interactive shell, a reader of command files, and single commands.

It knows the node by its public gRPC API only and shares no code with it.
"""

from typing import Final

__version__: Final = "0.1.0"
