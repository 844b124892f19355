"""A directory that several nodes share, as each of them sees it: late, slowly, or with errors.

Each node is a process in network and mount namespaces of its own that serves the directory there by
FUSE (`server`). Like an NFS client it remembers for a while which names there are, also those that
others have changed since (`view`). What a test wants to befall calls is told to it (`rules`) by
JSON lines, as to a `Rank`.
"""
