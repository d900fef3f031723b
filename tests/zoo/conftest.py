"""Timm imports torchvision, whose wheel may not import beside this torch: see `shim`. Before any test does so."""

import shim

shim.install_torchvision_shim()
