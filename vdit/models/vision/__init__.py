"""Image encoders."""

from vdit.models.vision.clip import CLIPVision, CLIPVisionConfig, clip_pixels
from vdit.models.vision.siglip import SiglipConfig, SiglipConnector, siglip_pixels

__all__ = ["CLIPVision", "CLIPVisionConfig", "SiglipConfig", "SiglipConnector", "clip_pixels", "siglip_pixels"]
