"""What pip installs beside the packages, see setup.py."""
