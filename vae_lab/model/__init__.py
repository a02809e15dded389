"""Images to a distribution over codes and back: networks, distributions, and the model made of them."""
