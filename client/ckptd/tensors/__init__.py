"""Everything that knows tensors: what a state is, how it is laid out as files, and back."""
