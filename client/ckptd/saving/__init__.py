"""From a training job's state to a committed checkpoint, and back."""
