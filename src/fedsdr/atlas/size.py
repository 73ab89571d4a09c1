"""How large a federation of the embedded world is, where nothing is said, and at most."""

CLIENTS, EXAMPLES = 8, 50  # of each client
MOST_EXAMPLES = 50_000  # of all clients: there are names for so many and more
