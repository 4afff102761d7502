"""What files of vision networks hold: keys.py reads transformers' names, dinov3.py DINOv3's,
images.py how photographs are prepared."""
