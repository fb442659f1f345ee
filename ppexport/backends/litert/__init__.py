"""LiteRT (formerly TensorFlow Lite): files for Android and boards."""
