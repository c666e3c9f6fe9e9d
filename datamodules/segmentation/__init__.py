"""Annotated images for segmentation, and unlabelled ones for pre-training."""
