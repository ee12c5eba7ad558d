"""Sources, cleaning, augmentation and batches."""
