// Pictures for onnxruntime.cpp and tensorrt.cpp: binary PPM files (P6, 8 bits), and the planes that a model takes and
// returns. Compiled and run by tests/test_examples.py.
#pragma once

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

struct Picture {
  int height = 0, width = 0;
  std::vector<uint8_t> rgb;  // height * width * 3, red, green and blue of one pixel after each other
};

inline Picture read_ppm(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string kind;
  int levels = 0;
  Picture picture;
  // Every number is followed by one blank; ImageMagick and Pillow write no comments.
  if (!(file >> kind >> picture.width >> picture.height >> levels) || kind != "P6" || levels != 255 ||
      picture.width < 1 || picture.height < 1 || picture.width > 65535 || picture.height > 65535) {
    throw std::runtime_error(path + " is no binary PPM file of 8 bits: ImageMagick's `magick in.png in.ppm` makes one");
  }
  file.get();
  picture.rgb.resize(size_t(picture.height) * picture.width * 3);
  if (!file.read(reinterpret_cast<char*>(picture.rgb.data()), picture.rgb.size())) {
    throw std::runtime_error(path + " ends before its last pixel");
  }
  return picture;
}

inline void write_ppm(const std::string& path, const Picture& picture) {
  std::ofstream file(path, std::ios::binary);
  file << "P6\n" << picture.width << " " << picture.height << "\n255\n";
  file.write(reinterpret_cast<const char*>(picture.rgb.data()), picture.rgb.size());
  if (!file.flush()) throw std::runtime_error(path + " cannot be written");
}

// The input `lr` of a model of height x width: three planes of floats in 0..1. A smaller picture is continued by its
// mirror image, as the network itself pads; black borders would change pixels near them.
inline std::vector<float> to_planes(const Picture& picture, int height, int width) {
  if (picture.height > height || picture.width > width) {
    throw std::runtime_error("the picture is larger than the model's " + std::to_string(height) + "x" +
                             std::to_string(width) + " pixels: cut it into tiles, or export with a larger --size");
  }
  auto mirror = [](int at, int size) { return at % (2 * size) < size ? at % size : size - 1 - at % size; };
  std::vector<float> planes(size_t(3) * height * width);
  for (int c = 0; c < 3; ++c)
    for (int y = 0; y < height; ++y)
      for (int x = 0; x < width; ++x) {
        const int from = mirror(y, picture.height) * picture.width + mirror(x, picture.width);
        planes[(size_t(c) * height + y) * width + x] = picture.rgb[size_t(from) * 3 + c] / 255.0f;
      }
  return planes;
}

// The upper left height x width pixels of the output `sr`, three planes with rows of `stride` floats. They are not
// clipped: without the clamp, values just outside 0..1 would wrap round to the other end of a byte.
inline Picture to_picture(const float* sr, int plane_height, int stride, int height, int width) {
  Picture picture{height, width, std::vector<uint8_t>(size_t(height) * width * 3)};
  for (int c = 0; c < 3; ++c)
    for (int y = 0; y < height; ++y)
      for (int x = 0; x < width; ++x) {
        const float value = std::clamp(sr[(size_t(c) * plane_height + y) * stride + x], 0.0f, 1.0f);
        picture.rgb[(size_t(y) * width + x) * 3 + c] = uint8_t(value * 255.0f + 0.5f);
      }
  return picture;
}
