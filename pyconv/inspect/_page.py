"""HTML pages that need no other file: tensors as text, and the scripts and styles of pages/."""

from __future__ import annotations

import base64
import json
from importlib.resources import files
from typing import Any

from torch import Tensor


def encoded(tensor: Tensor | None) -> Any:
    """A tensor for the page: its shape, and its float32 values in base64."""
    if tensor is None:
        return None
    values = tensor.detach().cpu().float().contiguous()
    return {
        "shape": list(values.shape),
        "data": base64.b64encode(values.numpy().tobytes()).decode(),
    }


def page(title: str, scripts: list[str], data: Any) -> str:
    """One HTML file that needs no other."""
    folder = files("pyconv.inspect") / "pages"
    parts = [(folder / name).read_text(encoding="utf-8") for name in ("window.js", *scripts)]
    text = json.dumps(data).replace("</", "<\\/")  # a name may not end the script
    safe = title.replace("&", "&amp;").replace("<", "&lt;")
    style = (folder / "page.css").read_text(encoding="utf-8")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{safe}</title>\n'
        f"<style>\n{style}</style></head>\n<body><main></main>\n<script>const DATA = {text};</script>\n"
        + "".join(f"<script>\n{part}</script>\n" for part in parts)
        + "</body></html>\n"
    )


def framed(html: str, height: int) -> str:
    """A page inside another."""
    escaped = html.replace("&", "&amp;").replace('"', "&quot;")
    return f'<iframe srcdoc="{escaped}" style="width:100%;height:{height}px;border:0"></iframe>'
