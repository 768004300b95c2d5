"""The product on other kernels, each in QEMU without KVM: `make test-kernels`, or `python -m tests.kernels`.

packages.py   kernels from the packages of Debian's suites, unpacked below build/kernels
image.py      the initramfs: busybox and the modules that find the root file system
guest.py      one QEMU: this machine's root file system, read-only, and no network
inside.py     the first process of a guest
work.py       what is done there, and here: facts.py, and pytest with reporting.py on the tests of selection.py
report.py     what came back, as values; the tables
"""
