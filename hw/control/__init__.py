"""Job control: descriptor, fetch, tiles, issue, results."""
