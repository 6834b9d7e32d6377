"""What plugins implement. Every port is an async interface whose docstring is its contract.

`perun_core.testing` holds the conformance class of each port, which is the proof of that contract.
"""
