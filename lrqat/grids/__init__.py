"""What values a weight may take, how scales are stored, and integers to weights and back."""
