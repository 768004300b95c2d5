"""What the kernel is asked for: namespaces, devices, addresses, routes. All calls block: run them in threads.

namespaces.py finds a namespace and runs code inside; fresh.py makes and deletes named ones; tun.py opens and checks TUN
devices; netlink.py talks rtnetlink; eni.py makes and removes the shared interface in a VPC, settings.py what it changes
there; device.py makes an environment's device by one call of C, tunnel.py in its namespace; watch.py tells when a
namespace goes away; reaper.py closes; jobs.py does all this for an event loop; privileges.py gives up what a process
does not need; sockets.py tells who is at the other end.
"""
