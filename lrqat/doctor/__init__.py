"""What `lrqat doctor` finds out: of this machine, and of where a model runs."""
