"""The fully automatic stage: everything mode annotates any number of images, as a dataset like SA-1B.

Reference: paper, section 4 (fully automatic stage) and appendix B.
"""
