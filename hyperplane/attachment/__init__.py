"""Environments on an engine in this process, for asyncio: `Attachments`."""

from hyperplane.attachment.attachment import Attachment, Timings
from hyperplane.attachment.attachments import Attachments

__all__ = ["Attachment", "Attachments", "Timings"]
