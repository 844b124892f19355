"""The way in: the public socket, who may use it, and how descriptors are handed out."""
