// Pictures for onnxruntime.cpp and tensorrt.cpp: binary PPM files (P6, 8 bits), and the planes that a model takes and
// returns; and the list of its capacities. Compiled and run by tests/test_examples.py.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <fstream>
#include <limits>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

struct Picture {
  int height = 0, width = 0;
  std::vector<uint8_t> rgb;  // height * width * 3, red, green and blue of one pixel after each other
};

inline Picture read_ppm(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  auto number = [&] {
    int value = 0;
    // GIMP writes a line of comment.
    while ((file >> std::ws).peek() == '#') file.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
    file >> value;
    return value;
  };
  char kind[2] = {};
  file.read(kind, 2);
  Picture picture;
  picture.width = number();
  picture.height = number();
  const int levels = number();
  // One blank, and the pixels begin. A \n after \r could be the first of them, or the rest of a line's end.
  const int blank = file.get();
  if (kind[0] != 'P' || kind[1] != '6' || levels != 255 || picture.width < 1 || picture.height < 1 ||
      picture.width > 65535 || picture.height > 65535 || (blank != '\n' && blank != ' ' && blank != '\t')) {
    throw std::runtime_error(path + " is no binary PPM file of 8 bits: ImageMagick's `magick in.png in.ppm` makes one");
  }
  // Row by row, so that a damaged header takes no more memory than the file has pixels.
  const size_t row = size_t(picture.width) * 3;
  for (int y = 0; y < picture.height; ++y) {
    picture.rgb.resize((y + 1) * row);
    if (!file.read(reinterpret_cast<char*>(&picture.rgb[y * row]), row)) {
      throw std::runtime_error(path + " ends before its last pixel");
    }
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
        const size_t from = size_t(mirror(y, picture.height)) * picture.width + mirror(x, picture.width);
        planes[(size_t(c) * height + y) * width + x] = picture.rgb[from * 3 + c] / 255.0f;
      }
  return planes;
}

// The upper left height x width pixels of the output `sr`, three planes with rows of `stride` floats. They are not
// clipped: without the clamp, values just outside 0..1 would wrap round to the other end of a byte. What is not finite
// is no colour; in fp16 it means that a number inside the network became too large.
inline Picture to_picture(const float* sr, int plane_height, int stride, int height, int width) {
  Picture picture{height, width, std::vector<uint8_t>(size_t(height) * width * 3)};
  for (int c = 0; c < 3; ++c)
    for (int y = 0; y < height; ++y)
      for (int x = 0; x < width; ++x) {
        const float value = sr[(size_t(c) * plane_height + y) * stride + x];
        if (!std::isfinite(value)) {
          throw std::runtime_error("the model returned NaN or infinite values: export it with --precision fp32");
        }
        picture.rgb[(size_t(y) * width + x) * 3 + c] = uint8_t(std::clamp(value, 0.0f, 1.0f) * 255.0f + 0.5f);
      }
  return picture;
}

// No model of ppexport has more pixels or slots. Checked before memory is taken for them: a file may be damaged.
constexpr int kMost = 1 << 20;

// The numbers of slots in `text`, such as "1024,2048,4096"; none in "". `name` says where the text was found.
inline std::vector<int> to_capacities(const std::string& text, const std::string& name) {
  std::vector<int> capacities;
  std::istringstream stream(text.empty() ? text : text + ",");
  for (std::string number; std::getline(stream, number, ',');) {
    const bool is_number = number.size() < 8 && number.find_first_not_of("0123456789") == std::string::npos;
    const int capacity = is_number && !number.empty() ? std::stoi(number) : 0;
    if (capacity <= (capacities.empty() ? 0 : capacities.back()) || capacity > kMost) {
      throw std::runtime_error(name + " must be ascending numbers of slots, such as 1024,2048,4096");
    }
    capacities.push_back(capacity);
  }
  return capacities;
}
