"""What is on the local disk, and the verbs that make it durable."""
