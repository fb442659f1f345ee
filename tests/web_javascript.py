"""Runs JavaScript in a tab of a browser, with arrays going both ways."""

from __future__ import annotations

import base64

import numpy as np

HELPERS = """
const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
const floats = (text) => new Float32Array(bytes(text).buffer);
const text = (array) => {
  const all = new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
  let found = "";
  for (let i = 0; i < all.length; i += 8192) found += String.fromCharCode(...all.subarray(i, i + 8192));
  return btoa(found);
};
"""


def run(page, body, argument):
    """What the JavaScript *body* returns of `cases`, *argument* with its arrays as base64."""
    return page.evaluate(f"async (cases) => {{ {HELPERS} {body} }}", encoded(argument))


def encoded(value):
    if isinstance(value, np.ndarray):
        return base64.b64encode(np.ascontiguousarray(value).tobytes()).decode()
    if isinstance(value, dict):
        return {name: encoded(item) for name, item in value.items()}
    return [encoded(item) for item in value] if isinstance(value, list) else value


def decoded(text, kind, shape=(-1,)):
    return np.frombuffer(base64.b64decode(text), kind).reshape(shape)
