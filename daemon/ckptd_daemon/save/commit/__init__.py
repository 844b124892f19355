"""What makes a set of images a committed step, and what unmakes it."""
