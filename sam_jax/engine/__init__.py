"""The data engine: masks by people with the model's help, then by the model alone; a better model from both.

Reference: paper, section 4.
"""
