"""PNG, JPEG, WebP, BMP and TIFF images as inputs: their settings, and pixels from the bytes of a file."""

from __future__ import annotations

import re
from io import BytesIO
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from workflow_lib.errors import DataError
from workflow_lib.plugins import Section

if TYPE_CHECKING:
    import numpy as np

MAX_PIXELS = 90_000_000  # the header of a small file can claim more, and decoding would take all memory
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
KINDS = "PNG, JPEG, WebP, BMP or TIFF"
BITS_PER_VALUE = 258  # tag of a TIFF file
Side = Annotated[int, Field(ge=1, le=8192)]
Size = tuple[int, int]  # height, width


class ImageSettings(Section):
    """Size and colours of the inputs."""

    size: Side | tuple[Side, Side] | None = Field(
        None,
        description="height and width of the inputs, or one number for both; null: all images must have one size",
    )
    channels: Literal["grey", "rgb"] = Field("rgb", description="colours of the inputs")
    background: Literal["black", "white"] = Field(
        "black", description="colour behind transparent parts, and of the margins that `resize: pad` adds"
    )
    resize: Literal["stretch", "crop", "pad"] = Field(
        "crop",
        description="for images of another size: stretch, crop (scale, then keep the middle), or pad",
    )

    @property
    def shape(self) -> Size | None:
        """Height and width, or None."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size


def size_of(image: Any) -> Size:
    """Return height and width."""
    return image.height, image.width


def pixels(content: bytes | memoryview, name: str, settings: ImageSettings, shape: Size | None) -> np.ndarray:
    """Return the image as uint8 [height, width, channels], scaled to the shape; `name` is for messages."""
    import numpy as np
    from PIL import Image, ImageOps

    image = decode(content, name, settings)
    shape = shape or size_of(image)
    size = (shape[1], shape[0])
    if image.size != size:
        fit = {
            "stretch": lambda: image.resize(size, Image.Resampling.BILINEAR),
            "crop": lambda: ImageOps.fit(image, size, Image.Resampling.BILINEAR),
            "pad": lambda: ImageOps.pad(image, size, Image.Resampling.BILINEAR, color=settings.background),
        }
        image = fit[settings.resize]()  # type: ignore[no-untyped-call]
    return np.asarray(image).reshape(*shape, -1)


def decode(content: bytes | memoryview, name: str, settings: ImageSettings) -> Any:
    """Return the upright image in grey or RGB, 8 bits per value; its info has the number of `images` in the file.

    The first of several images in a JPEG file is returned. Raises DataError for damage of any kind.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(BytesIO(content), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"has {image.width} x {image.height} pixels, more than {MAX_PIXELS:,}")
            # The header is read because Pillow opens 16-bit images in colour as 8 bits: it drops the lower byte.
            bits = content[24] if image.format == "PNG" else 8
            if image.format == "TIFF":
                bits = max(image.tag_v2.get(BITS_PER_VALUE, (8,)))  # type: ignore[attr-defined]
            if bits > 8 or image.mode.startswith(("I", "F")):
                raise ValueError(f"has {max(bits, 16)} bits a value, more than 8; convert it to 8 bits")
            frames = getattr(image, "n_frames", 1)
            if frames > 1 and image.format != "MPO":  # a JPEG of a phone: further images are previews or depths
                what = "has" if image.format == "TIFF" else "is an animation of"
                raise ValueError(f"{what} {frames} images; save one of them")
            upright = ImageOps.exif_transpose(image)
            if upright.has_transparency_data:
                ground = Image.new("RGBA", upright.size, settings.background)
                upright = Image.alpha_composite(ground, upright.convert("RGBA"))
            decoded = upright.convert("RGB" if settings.channels == "rgb" else "L")
            decoded.info["images"] = frames
            return decoded
    except Exception as error:  # decoders do not document what they raise on damage
        raise DataError(f"{name}: not a readable {KINDS} image ({_cause(error)})") from error


def _cause(error: Exception) -> str:
    """Return the text of an error of a decoder, without the name of the buffer that it read."""
    return re.sub(r"( file)? <_io\.BytesIO[^>]*>", "", str(error)) or type(error).__name__
