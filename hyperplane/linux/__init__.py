"""What the kernel is asked for: namespaces, devices, addresses, routes. All calls block: run them in threads.

namespaces.py finds a namespace and runs code inside; tun.py opens and checks TUN devices; netlink.py talks rtnetlink;
eni.py makes and removes the shared interface in a VPC; watch.py tells when a namespace goes away; reaper.py closes;
jobs.py runs all this for an event loop.
"""
