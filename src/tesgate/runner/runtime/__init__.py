"""What runs one executor on this host: the Docker Engine API, or bubblewrap where there is no engine."""
