"""Map the top-level folders onto the `moska` namespace package."""

from setuptools import find_packages, setup

PARTS = ("hw", "gen", "sim", "golden", "host", "fpga")

setup(
    package_dir={f"moska.{part}": part for part in PARTS},
    packages=[
        f"moska.{part}{sub}"
        for part in PARTS
        for sub in ("", *(f".{name}" for name in find_packages(part)))
    ],
)
