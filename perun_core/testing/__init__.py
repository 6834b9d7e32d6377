"""The kit with which plugin authors prove that a backend keeps its port's contract. Import it in tests only.

One module per port. Each holds

* a conformance class (`StoreConformance`, `KeyManagerConformance`, `IDProviderConformance`, …): subclass it as
  ``class TestMine(StoreConformance)``, implement its one opening method, run pytest with ``asyncio_mode = auto``, and
  every promise of the port's docstring is tried against your backend;
* an in-memory fake of the port (`MemoryStore`, `InMemoryKeys`, `InMemoryPeers`, …) which passes the same class, for
  tests of code that uses the port.

Nothing here imports a plugin, and importing this package imports none of its modules.
"""
