"""Version 1 of the wire contract (package `ckptd.v1`), generated from the .proto files."""
