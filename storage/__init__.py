"""What writes, pins and publishes; it knows no operator."""
