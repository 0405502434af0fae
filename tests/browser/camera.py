"""Pictures of pages as small files: WebP by the browser itself, which GitHub shows."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from pathlib import Path

from playwright.async_api import Page

QUALITY = 62
LONGEST = 1400
"""CSS pixels: a page that is longer is cut off there."""


@dataclass
class Camera:
    """Writes `<name>.webp` into a directory, and remembers what it wrote."""

    directory: Path
    taken: list[Path] = field(default_factory=list)

    async def take(self, page: Page, name: str, *, scale: float = 1.0) -> None:
        """Take the whole page as it is, once its fonts are there and nothing moves any more."""
        await page.evaluate("() => document.fonts.ready")
        size = page.viewport_size
        assert size is not None
        needed = await page.evaluate("() => { scrollTo(0, 0); return document.documentElement.scrollHeight }")
        height = min(max(needed, size["height"]), LONGEST)
        await page.set_viewport_size({"width": size["width"], "height": height})  # what sticks has the whole height
        clip = {"x": 0, "y": 0, "width": size["width"], "height": height, "scale": scale}
        session = await page.context.new_cdp_session(page)
        picture = await session.send(
            "Page.captureScreenshot",
            {"format": "webp", "quality": QUALITY, "clip": clip, "captureBeyondViewport": True},
        )
        await session.detach()
        await page.set_viewport_size(size)
        file = self.directory / f"{name}.webp"
        file.write_bytes(base64.b64decode(picture["data"]))
        self.taken.append(file)
