"""Makes the pictures of these tests and what Pillow reads in them: python3 pictures.py CHELSEA.png

CHELSEA.png is scikit-image's photograph of a cat (CC0). NAME.rgb holds Pillow's convert("RGB") after exif_transpose, raw;
NAME.WxH.FILTER.rgb holds Pillow's resize of photo.png."""

import struct
import sys
import zlib

import numpy as np
from PIL import Image, ImageCms, ImageOps

SIDES = (44, 30)
photo = Image.open(sys.argv[1]).convert("RGB").crop((100, 40, 364, 220)).resize(SIDES, Image.LANCZOS)
grey = photo.convert("L")
ramp = Image.fromarray((np.add.outer(np.arange(30) * 5, np.arange(44) * 2) % 256).astype(np.uint8))
alpha = photo.copy()
alpha.putalpha(ramp)


def png16(name, rows, colour):
    """Pillow writes no PNG of 16-bit colours."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = rows.shape[:2]
    raw = b"".join(b"\0" + row.astype(">u2").tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    with open(name, "wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b""))


exif = Image.Exif()
cmyk = Image.merge("CMYK", [*(ImageOps.invert(part) for part in photo.split()), ramp.point(lambda v: v // 4)])
photo.save("photo.png", optimize=True)
photo.save("photo.jpg", quality=92)
photo.save("sharp.jpg", quality=92, subsampling=0)
photo.save("progressive.jpg", quality=92, progressive=True)
grey.save("grey.jpg", quality=92)
cmyk.save("cmyk.jpg", quality=92)
for orientation in range(1, 9):
    exif[0x0112] = orientation
    photo.save(f"turned{orientation}.png" if orientation == 5 else f"turned{orientation}.jpg", quality=92, exif=exif)
photo.save("lossless.webp", lossless=True)
photo.save("lossy.webp", quality=90)
alpha.save("alpha.webp", lossless=True, exact=True)
photo.save("moving.webp", save_all=True, append_images=[ImageOps.mirror(photo)], lossless=True)
photo.save("photo.bmp")
photo.quantize(64).save("photo.gif", save_all=True, append_images=[ImageOps.mirror(photo).quantize(64)])
alpha.save("alpha.png", optimize=True)
photo.quantize(64).save("palette.png", transparency=3)
Image.merge("LA", (grey, ramp)).save("grey_alpha.png")
grey.save("grey.png")
grey.convert("1").save("bits.png")
wide = np.asarray(photo).astype(np.uint32) * 256 + 77
png16("rgb16.png", wide, 2)
png16("grey16.png", wide[..., 0], 0)
names = """photo.png photo.jpg sharp.jpg progressive.jpg grey.jpg cmyk.jpg turned1.jpg turned2.jpg turned3.jpg turned4.jpg
turned5.png turned6.jpg turned7.jpg turned8.jpg lossless.webp lossy.webp alpha.webp moving.webp photo.bmp photo.gif
alpha.png palette.png grey_alpha.png grey.png bits.png rgb16.png""".split()
for name in names:
    read = ImageOps.exif_transpose(Image.open(name)).convert("RGB")
    with open(f"{name}.rgb", "wb") as file:
        file.write(read.tobytes())
for name, size in {"less": (17, 11), "more": (71, 50), "flat": (60, 5), "same": (44, 13)}.items():
    for filter, kind in {"bilinear": Image.BILINEAR, "bicubic": Image.BICUBIC}.items():
        with open(f"{name}.{filter}.rgb", "wb") as file:
            file.write(photo.resize(size, kind).tobytes())
