"""`ckptd bench restore`: ckptd and torch's own ways of loading, side by side, in one run.

Each way loads what it has saved itself, into tensors that exist and have been touched. Every turn
is a job of its own; where the bytes lie when the clock starts is what the cases differ in.
"""
