"""What only measures: time, memory and speed, of ours beside others."""
