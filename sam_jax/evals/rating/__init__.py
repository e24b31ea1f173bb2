"""The paper's human study of mask quality: people rate masks of several models from 1 to 10, blind to their source."""
