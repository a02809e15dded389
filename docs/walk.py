# %% [markdown]
# # From a sweep to a walk through its latent space
#
# `make notebook` trains two small models (16 latent dimensions, β = 0.001, ten epochs each; 20 s on two cores) into
# `outputs/walk` and executes this page. Its source is `docs/walk.py`. [models.md](models.md) has every method that is
# used here.

# %%
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import make_grid

import vae_lab

sweep = Path("../outputs/walk")


def show(images, columns):
    """Images side by side, each pixel two wide and two high."""
    sheet = make_grid(images, nrow=columns, padding=1, pad_value=1)
    return to_pil_image(sheet.repeat_interleave(2, 1).repeat_interleave(2, 2))


# %% [markdown]
# ## Load the best run
#
# `best` takes any figure of `result.json`; the test images choose nothing.

# %%
model = vae_lab.load(sweep, best="val.total")

type(model).__name__, model.latent_dim, model.image_shape, sum(one.numel() for one in model.parameters())

# %% [markdown]
# ## Encode and reconstruct
#
# Every run leaves its first ten test images, the same for all runs. Below each is what the model makes of it, through
# the mean of its posterior.

# %%
pictures = next(sweep.glob("*/seed-0/pictures.npz"))
images = torch.from_numpy(np.load(pictures)["originals"]) / 255

show(torch.cat([images, model.reconstruct(images)]), columns=10)

# %%
posterior = model.encode(images)
error = (model.reconstruct(images) - images).square().mean()

print(f"codes {tuple(posterior.mean.shape)}, mean squared error {error:.4f}")

# %% [markdown]
# ## Sample
#
# z from the prior N(0, I). A VAE's codes are seldom spread like that, so that samples look worse than reconstructions.

# %%
show(model.sample(30, seed=0), columns=10)

# %% [markdown]
# ## Interpolate
#
# Straight lines between the codes of one image and the next.

# %%
lines = [model.interpolate(a, b, steps=10) for a, b in pairwise(images[:5])]

show(torch.cat(lines), columns=10)

# %% [markdown]
# ## One dimension at a time
#
# The dimensions in which these codes vary most, each from −3 to 3, the others as the first image has them.

# %%
liveliest = posterior.mean.var(0).argsort(descending=True)[:4].tolist()
rows = model.traverse(images[0], liveliest, span=3, steps=10)

show(rows.flatten(0, 1), columns=10)

# %% [markdown]
# ## Walk
#
# Two codes span a plane; a circle in it comes back to where it began, and stays about as far from the origin as samples
# of the prior are.

# %%
a, b = torch.randn(2, model.latent_dim, generator=torch.Generator().manual_seed(1))
angles = torch.linspace(0, 2 * torch.pi, 20)[:, None]
circle = torch.cos(angles) * a + torch.sin(angles) * b

show(model.decode(circle), columns=10)

# %% [markdown]
# ## Export
#
# Encoder and decoder as ONNX, each read again and held against the model before it is kept, with a model card beside
# them.

# %%
from vae_lab.trained.export import export

exported = export(sweep, ["onnx"], best="val.total")

print(*exported.sentences, sep="\n")
print(*sorted(path.name for path in exported.folder.iterdir()))

# %% [markdown]
# Another program walks the same circle with ONNX Runtime alone:

# %%
import onnxruntime

decoder = onnxruntime.InferenceSession(exported.folder / "decoder.onnx")
(walked,) = decoder.run(None, {"z": circle.numpy()})

bool(np.abs(walked - model.decode(circle).numpy()).max() < 1e-5)
