"""`convoy doctor`: proves each policy of a running Convoy by doing, on pods, clients and a lane of its own, and says what drifted."""
