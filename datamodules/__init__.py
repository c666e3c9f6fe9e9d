"""Data sets: one LightningDataModule a family; import each from its own file, which keeps this package light."""
