"""The asyncio shell around the core: sessions, peers, drivers, watcher."""
