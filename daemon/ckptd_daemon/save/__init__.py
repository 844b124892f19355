"""From bytes staged in shared memory to a committed checkpoint."""
