"""The clients file: who may call, with which keys, how often. The edge enforces it, `convoy keys` edits it; it holds no key, only hashes."""
