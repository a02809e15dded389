"""What a training costs beside other ways to write it, and how the cost grows: `make bench`."""
