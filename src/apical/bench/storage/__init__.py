"""What a run leaves on disk: records, run folders, checkpoints, claims."""
