"""The pod: one aiohttp server in front of one generation backend."""
