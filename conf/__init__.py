"""The configuration files, shipped in the wheel as `vae_lab.conf`."""
