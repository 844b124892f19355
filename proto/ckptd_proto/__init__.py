"""The contract between client and daemon: wire types and the errors that cross it."""
