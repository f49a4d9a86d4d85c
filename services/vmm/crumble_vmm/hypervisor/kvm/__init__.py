"""KVM. So far only its probe: the back end itself comes with a later version."""
