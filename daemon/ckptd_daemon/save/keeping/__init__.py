"""What becomes of committed steps: which stay, which go, and what points at them."""
