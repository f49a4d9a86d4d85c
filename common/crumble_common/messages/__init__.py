"""Every message on the control plane, declared once.

`service`: the life of any service. `vm`: a VM and its processes. `debug`: debugging it. `image`: `ocid`. `fs`:
`fsd`. `net`: `netd`. `client`: what the CLI and SDK ask of the supervisor. A request's class docstring names its reply.
"""
