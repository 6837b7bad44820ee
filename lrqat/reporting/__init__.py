"""What came of a run, as one HTML file that needs nothing else: `lrqat report`."""
