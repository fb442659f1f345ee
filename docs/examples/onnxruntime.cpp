// Super-resolves one picture of at most one tile with an artifact of `ppexport export MODEL --size HxW`, in ONNX
// Runtime's C++ API. Compiled and run by tests/test_examples.py, whose pictures are those of `ppexport upscale`.
//
//   g++ -std=c++17 -O2 onnxruntime.cpp -I$ORT/include -L$ORT/lib -lonnxruntime -Wl,-rpath,$ORT/lib -o upscale
//   ./upscale x2_64/model.onnx in.ppm out.ppm
#include <onnxruntime_cxx_api.h>

#include <filesystem>
#include <iostream>

#include "picture.h"

// The numbers of slots that the artifact was exported for, ascending: "256,512,1024" in its metadata. One number is
// built into the graph; several are a capacity set, whose input `slots` chooses; a network without slots has none.
std::vector<int> read_capacities(const Ort::Session& session) {
  Ort::AllocatorWithDefaultOptions allocator;
  auto text = session.GetModelMetadata().LookupCustomMetadataMapAllocated("ppexport.capacities", allocator);
  if (!text) throw std::runtime_error("the model is no artifact of ppexport: it lacks ppexport.capacities");
  return to_capacities(text.get(), "the model's ppexport.capacities");
}

// The shape of `lr` or `sr`: 1, 3, height, width.
std::vector<int64_t> shape_of(const Ort::TypeInfo& info, const std::string& name) {
  if (info.GetONNXType() == ONNX_TYPE_TENSOR) {
    const auto tensor = info.GetTensorTypeAndShapeInfo();
    const auto shape = tensor.GetShape();
    if (tensor.GetElementType() == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT && shape.size() == 4 && shape[0] == 1 &&
        shape[1] == 3 && shape[2] > 0 && shape[3] > 0) {
      return shape;
    }
  }
  throw std::runtime_error("the model is no artifact of ppexport: its " + name + " is not float32 of 1x3xHxW");
}

int main(int argc, char** argv) try {
  if (argc != 4) throw std::runtime_error("usage: upscale MODEL.onnx IN.ppm OUT.ppm");
  Ort::Env env(ORT_LOGGING_LEVEL_ERROR, "ppexport");
  Ort::SessionOptions options;
  // Attention computes many numbers that are nearly 0, with which some processors are a hundred times slower.
  options.AddConfigEntry("session.set_denormal_as_zero", "1");
  // Opening takes seconds: an app keeps the session, and may call Run of one session from several threads.
  Ort::Session session(env, std::filesystem::path(argv[1]).c_str(), options);
  const auto capacities = read_capacities(session);
  const bool is_set = capacities.size() > 1;
  Ort::AllocatorWithDefaultOptions allocator;
  std::vector<int64_t> shape;
  for (size_t i = 0; i < session.GetInputCount(); ++i) {
    const std::string name = session.GetInputNameAllocated(i, allocator).get();
    if (name == "mask") throw std::runtime_error("the model takes the mask as an input: export it with --mask graph");
    if (name == "lr") shape = shape_of(session.GetInputTypeInfo(i), "lr");
  }
  if (shape.empty() || shape[2] > kMost / shape[3]) {
    throw std::runtime_error("the model is no artifact of ppexport: it has no input lr of at most a million pixels");
  }

  const Picture picture = read_ppm(argv[2]);
  auto lr = to_planes(picture, int(shape[2]), int(shape[3]));
  auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  auto run = [&](int capacity) {
    // Of `slots` only the length counts; a graph with one capacity has `lr` alone.
    std::vector<int32_t> slots(is_set ? capacity : 0);
    const int64_t length[] = {1, capacity};
    std::vector<Ort::Value> inputs;
    inputs.push_back(Ort::Value::CreateTensor<float>(memory, lr.data(), lr.size(), shape.data(), shape.size()));
    if (is_set) inputs.push_back(Ort::Value::CreateTensor<int32_t>(memory, slots.data(), slots.size(), length, 2));
    const char* in[] = {"lr", "slots"};
    const char* out[] = {"sr", "impure_tokens"};
    auto outputs = session.Run(Ort::RunOptions{}, in, inputs.data(), inputs.size(), out, 2);
    for (const auto& output : outputs) {
      if (!output.HasValue() || !output.IsTensor()) {
        throw std::runtime_error("the model is no artifact of ppexport: its outputs are no tensors");
      }
    }
    const auto count = outputs[1].GetTensorTypeAndShapeInfo();
    if (count.GetElementType() != ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32 || count.GetElementCount() != 1) {
      throw std::runtime_error("the model is no artifact of ppexport: its impure_tokens is not one int32");
    }
    return outputs;
  };

  // The smallest capacity is the fastest. The output says whether it was enough, and if not which one is.
  auto outputs = run(capacities.empty() ? 0 : capacities.front());
  const int32_t impure = outputs[1].GetTensorData<int32_t>()[0];
  if (!capacities.empty() && impure > capacities.front()) {
    const auto fitting = std::lower_bound(capacities.begin(), capacities.end(), impure);
    if (fitting == capacities.end()) {
      throw std::runtime_error("the picture has " + std::to_string(impure) + " impure tokens, and the artifact " +
                               std::to_string(capacities.back()) + " slots: export it with full capacity");
    }
    outputs = run(*fitting);
  }
  const auto size = shape_of(outputs[0].GetTypeInfo(), "sr");
  const int scale = int(size[2] / shape[2]);
  if (scale < 1 || size[2] != shape[2] * scale || size[3] != shape[3] * scale) {
    throw std::runtime_error("the model is no artifact of ppexport: its sr is no multiple of its lr");
  }
  write_ppm(argv[3], to_picture(outputs[0].GetTensorData<float>(), int(size[2]), int(size[3]), picture.height * scale,
                                picture.width * scale));
  return 0;
} catch (const std::exception& error) {
  std::cerr << error.what() << "\n";
  return 1;
}
