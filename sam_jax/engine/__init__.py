"""The data engine: people annotate with the model's help, the model is retrained, then it annotates on its own.

Reference: paper, section 4.
"""
