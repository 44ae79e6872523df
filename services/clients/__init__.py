"""The clients file: who may call, with which keys, how often. The edge enforces it, `convoy keys` edits it; it has hashes, never a key."""
