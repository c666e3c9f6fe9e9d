"""Frozen networks that turn images into low-resolution feature maps, one file each."""
