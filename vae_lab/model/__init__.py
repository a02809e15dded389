"""The model: networks and distributions that map images to latent codes and back."""
