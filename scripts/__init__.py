"""Generative models that make images together with their masks: data, networks, losses, training, sampling, report."""

from scripts.runtime.packed import guard

guard()
