"""Where each tensor comes from, and which type it gets."""
