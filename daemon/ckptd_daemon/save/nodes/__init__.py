"""The same with ranks on several nodes: what one daemon does next, and the filesystem under it."""
