"""Place of frames in MP3 files without a container, which hold no time stamps.

FFmpeg counts the frames that it finds in such a file. Where some are destroyed, all that follows comes too early by
their length. Here the bytes that belong to no frame are counted too, and stand for as many frames as fit into them.
(FFmpeg passes over broken parts of AAC files without a container and tells nobody, so the same cannot be done there.)
"""

from __future__ import annotations

import av

# Bit rates in kbit/s by their index: MPEG-1 layer III, and MPEG-2 and 2.5 (ISO/IEC 11172-3, 2.4.2.3; 13818-3, 2.4.2.3)
_BIT_RATES_1 = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_BIT_RATES_2 = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_RATES = (44100, 48000, 32000)  # of MPEG-1; half of them in MPEG-2, a quarter in MPEG-2.5
_TAGS = (b"ID3", b"TAG", b"APE", b"LYR")  # text between frames, which takes no time
_MOST_FRAMES = 400  # some 10 s: more junk in one place is no damaged sound


class ByteClock:
    """Counts the frames that are lost in a file without time stamps; it is shown all packets, in order."""

    FORMATS = ("mp3",)
    """Demuxers of such files."""

    def __init__(self) -> None:
        self.lost_frames = 0
        """Frames that were lost before the packet that was shown last, and are not in its time stamp."""
        self._junk = 0  # bytes since the last good frame that belong to none
        self._counted = 0  # packets among them, each of which FFmpeg counts as one frame
        self._end: int | None = None  # byte after the last packet
        self._bytes = 0  # of all good frames
        self._good = 0  # their number

    def show(self, packet: av.Packet) -> bool:
        """Count a packet; False: no frame begins with it, so it holds junk and is to be left out."""
        head = bytes(memoryview(packet)[:8])
        # Bytes that were passed over between two packets.
        if self._end is not None and packet.pos is not None and packet.pos > self._end:
            self._junk += packet.pos - self._end
        self._end = None if packet.pos is None else packet.pos + packet.size
        size = frame_bytes(head)
        if size is None or size > packet.size:
            if not head.startswith(_TAGS):
                self._junk += packet.size
                self._counted += 1
            return not self._good  # a file of another kind is left to FFmpeg
        # How many frames the junk held, now that it is whole.
        if self._good and self._junk:
            number = round(self._junk * self._good / self._bytes)
            self.lost_frames += number - self._counted if number <= _MOST_FRAMES else 0
        self._junk, self._counted = packet.size - size, 0
        self._bytes += size
        self._good += 1
        return True


def frame_bytes(head: bytes) -> int | None:
    """Length in bytes of the layer III frame that begins with `head` (4 bytes or more); None: none begins.

    Source: ISO/IEC 11172-3, 2.4.2.3.
    """
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return None
    version, layer = head[1] >> 3 & 3, head[1] >> 1 & 3
    bit_rate, rate, padding = head[2] >> 4, head[2] >> 2 & 3, head[2] >> 1 & 1
    if version == 1 or layer != 1 or bit_rate in (0, 15) or rate == 3:
        return None
    if version == 3:
        return 144_000 * _BIT_RATES_1[bit_rate] // _RATES[rate] + padding
    return 72_000 * _BIT_RATES_2[bit_rate] // (_RATES[rate] // (2 if version == 2 else 4)) + padding
