"""Files that pip installs at the top level of site-packages, see setup.py."""
