"""Media files of a few kilobytes that ask for gigabytes, and files that name other files and addresses."""

from __future__ import annotations

import struct
import zlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

HOURS_10 = 36_000
"""Ten hours in seconds."""


def sound_with_gap(path: Path, seconds: int = HOURS_10, *, late: bool = False) -> Path:
    """Silence of a few frames, with a gap in its time stamps: in the middle, or before the first."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libopus" if path.suffix == ".mka" else "aac", rate=48_000, layout="mono")
        places = [0, 960, seconds * 48_000, seconds * 48_000 + 960]
        for position in places[2:] if late else places:
            samples = np.full((1, 960), 0.25, np.float32)
            frame = av.AudioFrame.from_ndarray(samples, format="flt", layout="mono")
            frame.sample_rate, frame.time_base = 48_000, Fraction(1, 48_000)
            resampler = av.AudioResampler(format=stream.codec_context.format.name, layout="mono", rate=48_000)
            for converted in resampler.resample(frame):
                converted.pts = position
                container.mux(stream.encode(converted))
        container.mux(stream.encode(None))
    return path


def packed_silence(path: Path, seconds: int, rate: int = 8000) -> Path:
    """FLAC of silence: a dozen bytes for eight seconds."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("flac", rate=rate, layout="mono")
        stream.codec_context.format = "s16"
        stream.codec_context.options = {"frame_size": "65535"}
        for begin in range(0, seconds * rate, 65_535):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 65_535), np.int16), format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = rate, begin, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def wav(path: Path, rate: int, channels: int = 1, samples: int = 7000) -> Path:
    """WAV of 8 bits whose header says any rate and number of channels."""
    data = bytes([128]) * (samples * channels)
    header = struct.pack("<4sI4s4sIHHIIHH", b"RIFF", 36 + len(data), b"WAVE", b"fmt ", 16, 1, channels, rate, 0, 1, 8)
    path.write_bytes(header + struct.pack("<4sI", b"data", len(data)) + data)
    return path


def long_index(path: Path, samples: int = 1 << 26) -> Path:
    """MP4 of a kilobyte whose tables announce an index of gigabytes."""
    data = bytearray(sound_with_gap(path, 1).read_bytes())
    sizes, chunks = data.index(b"stsz"), data.index(b"stsc")
    data[sizes + 8 : sizes + 16] = struct.pack(">II", 1, samples)
    data[chunks + 16 : chunks + 20] = struct.pack(">I", samples)
    path.write_bytes(data)
    return path


def png(path: Path, width: int, height: int, *, colour: int = 0, depth: int = 1, chunks: bytes = b"") -> Path:
    """Black PNG, made without its pixels in memory; `colour` is PNG's type, `chunks` come before the pixels."""
    bits = {0: 1, 2: 3, 6: 4}[colour] * depth
    packer, packed = zlib.compressobj(9), bytearray()
    row = bytes(1 + (width * bits + 7) // 8)
    for _ in range(height):
        packed += packer.compress(row)
    packed += packer.flush()
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunks + png_chunk(b"IDAT", bytes(packed)) + png_chunk(b"IEND"))
    return path


def png_chunk(kind: bytes, data: bytes = b"") -> bytes:
    """Chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def references(url: str, file: Path) -> dict[str, bytes]:
    """Content of files that name an address or another file, by a name for each kind."""
    host = url.removeprefix("http://").rstrip("/")
    address, _, port = host.partition(":")
    return {
        "hls": f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{url}a.ts\n#EXT-X-ENDLIST\n".encode(),
        "hls of a file": f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{file}\n#EXT-X-ENDLIST\n".encode(),
        "hls of data": b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\ndata:video/mp4;base64,AAAA\n#EXT-X-ENDLIST\n",
        "hls of a part": f"#EXTM3U\n#EXTINF:9,\nsubfile,,start,0,end,0,,:{file}\n#EXT-X-ENDLIST\n".encode(),
        "hls key": f'#EXTM3U\n#EXT-X-KEY:METHOD=AES-128,URI="{url}k"\n#EXTINF:9,\na.ts\n#EXT-X-ENDLIST\n'.encode(),
        "dash": (
            '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"'
            f' mediaPresentationDuration="PT9S"><BaseURL>{url}</BaseURL><Period><AdaptationSet mimeType="video/mp4">'
            f'<Representation id="1" bandwidth="1"><BaseURL>{url}a.mp4</BaseURL><SegmentBase/></Representation>'
            "</AdaptationSet></Period></MPD>"
        ).encode(),
        "concat": f"ffconcat version 1.0\nfile '{url}a.mp4'\n".encode(),
        "concat of a file": f"ffconcat version 1.0\nfile '{file}'\n".encode(),
        "sdp": (
            f"v=0\no=- 0 0 IN IP4 {address}\ns=x\nc=IN IP4 {address}\nt=0 0\nm=video {port} RTP/AVP 96\n"
            "a=rtpmap:96 H264/90000\n"
        ).encode(),
        "rtsp": f"rtsptext\nrtsp://{host}/a\n".encode(),
        "asx": f'<ASX version="3.0"><Entry><Ref href="{url}a.wmv"/></Entry></ASX>'.encode(),
        "pls": f"[playlist]\nFile1={url}a.mp3\nNumberOfEntries=1\n".encode(),
        "ffmetadata": f";FFMETADATA1\ntitle={url}\n".encode(),
        "image list": f"{url}a.png\n".encode(),
    }


def elsewhere(path: Path, target: str) -> Path:
    """QuickTime file whose samples lie in another file, named as an alias (`dref` with `alis`)."""
    with av.open(str(path), "w", format="mov") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width = stream.height = 64
        for number in range(3):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 60, np.uint8), format="rgb24")
            frame.pts = number
            container.mux(stream.encode(frame.reformat(format="yuv420p")))
        container.mux(stream.encode(None))
    data = bytearray(path.read_bytes())
    # The entry of the table of references gets the flag "not in this file", and the name as its content.
    place = data.index(b"dref")
    entry = data.index(b"url ", place) if b"url " in data[place : place + 40] else data.index(b"alis", place)
    name = b"Disk" + target.replace("/", ":").encode()
    alias = b"alis" + bytes(4 + 10) + b"\4" + b"Disk".ljust(27, b"\0") + bytes(12 + 1 + 63 + 16)
    alias += struct.pack(">hh", -1, -1) + bytes(16)  # levels from here and to there: not given
    alias += struct.pack(">hH", 2, len(name)) + name + b"\0" * (len(name) % 2) + struct.pack(">hH", -1, 0)
    grown = struct.pack(">I", len(alias) + 4) + alias
    old = struct.unpack(">I", data[entry - 4 : entry])[0]
    data[entry - 4 : entry - 4 + old] = grown
    # Every box around it has grown too.
    more = len(grown) - old
    for name_of_box in (b"dref", b"dinf", b"minf", b"mdia", b"trak", b"moov"):
        start = data.rindex(name_of_box, 0, entry) - 4
        size = struct.unpack(">I", data[start : start + 4])[0]
        data[start : start + 4] = struct.pack(">I", size + more)
    path.write_bytes(data)
    return path
