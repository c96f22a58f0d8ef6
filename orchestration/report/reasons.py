"""Reasons why inputs and pieces are not samples, each in a plain sentence for the report."""

from __future__ import annotations

REASONS = {
    # --- before anything is read
    "missing_source": "The metadata names the clip, but its video is not in SOURCE.",
    # --- ingest
    "frame_too_large": "The frames of the source have more pixels than ingest takes.",
    "empty_interval": "The source has no frame in the clip's interval.",
    "short_piece": "Between two cuts, or at an end, too few frames are left for a sample.",
    "transition": "The images dissolve, fade or wipe from one scene into another in it.",
    "blank": "The images are black, white or of one colour, at the beginning or the end of a clip.",
    "no_face": "No face was found, or in so few frames that they are taken for false detections.",
    "small_crop": "The face is so small in the source that its crop would have to be enlarged too much.",
    "nothing_put_out": "Ingest's record of the clip names neither a sample nor a reason.",
    "no_output": "The job gave neither a sample nor a reason.",
    # --- annotation
    "annotate_failed": "The annotation could not be made; the quarantine has the cause.",
    # --- filters
    "several_faces": "More than one face is seen in too many frames, so nobody knows who speaks.",
    "several_persons": "The shape of the face changes within the clip: it seems to show more than one person.",
    "too_short": "The clip has too few frames.",
    "few_valid_frames": "Too few frames, or too few in a row, show a face that could be measured.",
    "small_face": "The face is too small in the clip or in the source: there is no detail to learn from.",
    "profile": "The head is turned so far to a side that half of the face is a guess.",
    "tilted": "The head is tilted too far.",
    "upside_down": "The face stands upside down: the file lacks the rotation that would turn it.",
    "dark": "The face is too dark.",
    "overexposed": "The face is too bright.",
    "blurred": "The face is not sharp: out of focus, enlarged, or compressed too much.",
    "jitter": "The landmarks jump from frame to frame, so the face was not tracked well.",
    "still": "The face is a photo: nothing in it moves, though the whole of it may be zoomed, moved or shaken.",
    "frozen": "The images stand still for too long, as where a feed hangs.",
    "low_frame_rate": "Too few images a second are new, as in a slide show: lips cannot be followed in it.",
    "damaged": "Too large a share of the frames is damaged in the source: broken blocks, or torn images.",
    "hdr": "The source has a high dynamic range (HDR), and the filters are set to leave such clips out.",
    "interlaced": "The source is interlaced, and the filters are set to leave such clips out.",
    "no_audio": "The clip has no sound, or for too large a share of it, and the filters are set to ask for sound.",
    "silent_audio": "The sound is silent, and the filters are set to ask for sound.",
}
"""Reason → sentence. A reason that is not in it has none: columns of users may have reasons of their own."""
