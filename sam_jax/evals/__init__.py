"""Metrics, and the zero-shot evaluations of the Segment Anything paper."""
