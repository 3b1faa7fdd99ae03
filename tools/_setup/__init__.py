"""What tools/setup_env.sh does, in the standard library alone."""
