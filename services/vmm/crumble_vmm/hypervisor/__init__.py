"""Back ends that run a guest's vCPUs."""
