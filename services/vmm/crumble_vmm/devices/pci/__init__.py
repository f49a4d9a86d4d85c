"""PCI as firmware hands it over: a host bridge with ECAM, and functions with memory BARs and MSI-X."""
