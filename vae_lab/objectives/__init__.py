"""What a training minimises: a model and images to named terms."""
