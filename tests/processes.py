"""How tests start other processes: as copies of this one, which need not import anything."""

import multiprocessing

import torch

METHOD = "spawn" if torch.cuda.is_available() else "fork"
"""Autograd does not run in a fork of a process whose engine has started a GPU's threads."""
CONTEXT = multiprocessing.get_context(METHOD)
