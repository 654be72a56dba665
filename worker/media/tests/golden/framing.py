"""Makes what torchvision's Resize and CenterCrop leave of photo.png: python3 framing.py"""

from PIL import Image
from torchvision.transforms import CenterCrop, InterpolationMode, Resize

photo = Image.open("photo.png")
for name, picture in {"wide": photo, "tall": photo.transpose(Image.Transpose.ROTATE_90)}.items():
    for shorter, crop in ((25, 20), (64, 33)):
        resized = Resize(shorter, InterpolationMode.BICUBIC)(picture)
        with open(f"{name}.{shorter}.{crop}.rgb", "wb") as file:
            file.write(CenterCrop(crop)(resized).tobytes())
