"""Segmentation from a handful of annotated images: frozen features and an ensemble of pixel classifiers."""
