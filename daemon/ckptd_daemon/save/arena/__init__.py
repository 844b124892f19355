"""The shared memory that ranks copy into: what it may take, its slots, and who may look at them."""
