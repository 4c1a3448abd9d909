"""What the service remembers: jobs, who works on them, and the files that they made."""
