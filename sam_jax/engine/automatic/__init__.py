"""The fully automatic stage: everything mode over any number of images, into a data set like SA-1B.

Reference: paper, section 4 (fully automatic stage) and B.
"""
