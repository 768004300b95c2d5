"""Environments on an engine in this process, for asyncio: `Attachments`."""

from hyperplane.attachment.attachment import Attachment, Timings
from hyperplane.attachment.attachments import Attachments
from hyperplane.attachment.keeping import Observer

__all__ = ["Attachment", "Attachments", "Observer", "Timings"]
