"""From the arena to the disk: images are written, or linked where they did not change."""
