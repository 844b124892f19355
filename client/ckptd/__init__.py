"""ckptd: fetch a checkpoint once per node, save checkpoints off the training step."""
