"""Remotes: each turns a reference into an object with an immutable version, readable by ranges."""
