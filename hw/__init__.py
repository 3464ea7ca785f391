"""The unit in Amaranth HDL. A query's way through it reads like the folder listing."""
