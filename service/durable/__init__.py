"""Jobs as data that outlives the process: requests, outcomes and snapshots as JSON and blobs, and back."""
