"""`ckptd bench save`: ckptd and torch's own ways of saving, side by side, in one run.

Every turn is a job of its own: ranks that train, on a state that lies in memory already, save
once without a clock and once with it. Durable is compared with durable: what a peer leaves in the
page cache is synced before the clock stops.
"""
