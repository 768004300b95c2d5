from __future__ import annotations

from hyperplane.errors import DeviceError, DeviceExists, InvalidValue, NotATunnel


def test_one_line_with_all_that_helps() -> None:
    error = DeviceError("device eth0:\n refused", resource="box1", limit="64 routes", remedy="give fewer")
    assert str(error) == "box1: device eth0: refused (limit: 64 routes); give fewer"


def test_nothing_is_said_twice() -> None:
    error = InvalidValue("MTU is 5, not 576 to 65535", resource="MTU", limit="576 to 65535")
    assert str(error) == "MTU is 5, not 576 to 65535"


def test_who_catches_what() -> None:
    assert isinstance(InvalidValue("x"), ValueError)
    assert isinstance(NotATunnel("x"), DeviceError)
    assert isinstance(DeviceExists("x"), DeviceError)
    assert (DeviceError.status, DeviceExists.status) == (500, 409)
