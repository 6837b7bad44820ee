"""What training minimises: losses, and the teachers they ask."""
