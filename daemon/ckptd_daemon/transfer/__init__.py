"""How one object comes: its bytes from an origin into a partial, and the judgement of the whole."""
