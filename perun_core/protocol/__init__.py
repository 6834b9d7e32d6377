"""Sans-IO conversations: handshake, opening, updating, settling. Events in, effects out; no clock, no keys, no network.

`handle(event) -> effects` is the only door of a machine. The order of the effects is the durability rule: whoever
performs them goes through them in order and stops at the first failure, so nothing leaves the process before what it
depends on is on disk.
"""
