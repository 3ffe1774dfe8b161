"""Generative models that make images together with their masks: data, networks, losses, training, sampling, report."""

from .runtime.packed import guard

guard()
