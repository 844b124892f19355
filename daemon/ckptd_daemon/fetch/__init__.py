"""Bring each object version to this node once."""
