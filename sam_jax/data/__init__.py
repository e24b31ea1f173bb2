"""Reads files of images and masks as examples, and turns examples into batches."""
