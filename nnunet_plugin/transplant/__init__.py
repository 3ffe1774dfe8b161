"""Lesion transplants: lesions of one patient in the anatomy of another, made while training.

`bank`, `body`, `donors`, `warp`, `place` and `paste` are the core: arrays `(channels, *spatial)`, integer label maps,
spacings in mm and a numpy generator, in two or three dimensions; they know neither nnU-Net nor any other loader.
"""
