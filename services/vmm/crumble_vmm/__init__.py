"""The virtual machine monitor: vCPUs, guest memory, chipset, devices and boot of one VM."""
