"""Load: when to ask what (`arrivals`, `kinds`), a client (`client`), what came of it (`outcome`, `summary`), charts (`plot`)."""
