"""One process that trains: claim, train, report, checkpoint, hand over."""
