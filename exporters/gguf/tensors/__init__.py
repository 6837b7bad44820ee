"""Where each tensor comes from, which type it gets, and its bytes in that type."""
