"""What pyproject.toml cannot say: the extension comes from cffi, and one wheel serves CPython 3.11 and later."""

from setuptools import setup

setup(
    cffi_modules=["csrc/build.py:ffibuilder"],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
