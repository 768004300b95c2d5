"""Environments on an engine in this process, for asyncio: `Attachments`."""

from hyperplane.attachment.attachments import Attachment, Attachments, Timings

__all__ = ["Attachment", "Attachments", "Timings"]
