"""The simulated annotator."""
