"""What several test modules share: small models, data sets written to a folder, recorded results of other code."""
