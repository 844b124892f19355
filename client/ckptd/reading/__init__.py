"""Reading tensors while their file is still on its way."""
