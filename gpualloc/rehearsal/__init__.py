"""N GPUs rehearsed on one: the real training step as rank 0 of ranks that do not exist, with the wire modelled."""

from gpualloc.rehearsal.link_model import LinkModel, link_names, load_link
from gpualloc.rehearsal.virtual_group import Rehearsal, links_take_no_time, rehearsed

__all__ = ["LinkModel", "Rehearsal", "link_names", "links_take_no_time", "load_link", "rehearsed"]
