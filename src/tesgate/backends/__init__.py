"""What runs tasks. Backends never import each other."""
