"""Probe: what a file is, from its header and its first frame. Nothing else is decoded."""

from __future__ import annotations

from data_pipelines.records import ClipRecord
from vdit.video.read import probe as probe_video


def probe(record: ClipRecord, options: None = None) -> ClipRecord:
    """The record of a file with its size and what its header claims.

    Args:
        record: of a whole file; only its path is read.
        options: none.

    Returns:
        The record with `size`, and with the columns fps, claimed_duration (seconds), claimed_frames, codec,
        pixel_format, rotation (degrees), hdr ("pq", "hlg" or None), sound, streams. A header may lie: `end` stays None
        until the file is decoded.

    Raises:
        VideoError: the file cannot be opened, or has no video.
    """
    info = probe_video(record.path)
    return record.replace(size=(info.height, info.width)).with_measures(
        fps=info.fps,
        claimed_duration=info.duration,
        claimed_frames=info.frames,
        codec=info.codec,
        pixel_format=info.pixel_format,
        rotation=info.rotation,
        hdr=info.hdr,
        sound=info.sound,
        streams=info.streams,
    )
