"""The commands. Each parses, calls one public library function, and prints what it returned."""
