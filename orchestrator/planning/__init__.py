"""What `tetrarch plan` predicts and draws. No Ray, no engines."""
