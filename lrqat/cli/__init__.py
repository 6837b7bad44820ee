"""The commands, one a file. Each parses, calls one public function, and prints."""
