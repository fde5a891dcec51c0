"""Image encoders."""

from vdit.models.vision.clip import CLIPVision, CLIPVisionConfig, clip_pixels

__all__ = ["CLIPVision", "CLIPVisionConfig", "clip_pixels"]
