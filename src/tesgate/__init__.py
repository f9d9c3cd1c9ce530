"""tesgate: a GA4GH gateway that carries tasks out on container engines, clusters and clouds."""

__all__ = ["__version__"]

__version__ = "0.1.0"
