"""``perunnode demo``: two people open channels, pay each other and settle, told for somebody who is new to it.

Nothing here knows the inside of a node: commands run as processes of their own, people speak the published API.
`world` runs the processes, `person` is a client of the API, `money` reads the chain and checks the books, `screen`
prints, `story` puts them together.
"""
