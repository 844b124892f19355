"""`ckptd bench fetch`: ckptd and what users would pick instead, side by side, in one run.

Contestants take turns in an order that rotates, after one round that does not count; every result
is synced to disk inside the clock, and compared with the source outside of it.
"""
