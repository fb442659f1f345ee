// Super-resolves one picture of at most one tile with an artifact of `ppexport export MODEL --size HxW`, in ONNX
// Runtime's C++ API. Compiled and run by tests/test_examples.py, whose pictures are those of `ppexport upscale`.
//
//   g++ -std=c++17 -O2 onnxruntime.cpp -I$ORT/include -L$ORT/lib -lonnxruntime -Wl,-rpath,$ORT/lib -o upscale
//   ./upscale x2_64/model.onnx in.ppm out.ppm
#include <onnxruntime_cxx_api.h>

#include <filesystem>
#include <iostream>
#include <sstream>

#include "picture.h"

// The numbers of slots that the artifact was exported for, ascending: "256,512,1024" in its metadata. One number is
// built into the graph; several are a capacity set, whose input `slots` chooses; a network without slots has none.
std::vector<int64_t> read_capacities(const Ort::Session& session) {
  Ort::AllocatorWithDefaultOptions allocator;
  auto text = session.GetModelMetadata().LookupCustomMetadataMapAllocated("ppexport.capacities", allocator);
  if (!text) throw std::runtime_error("the model is no artifact of ppexport: it lacks ppexport.capacities");
  std::vector<int64_t> capacities;
  std::istringstream stream(text.get());
  for (std::string number; std::getline(stream, number, ',');) capacities.push_back(std::stoll(number));
  return capacities;
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
  for (size_t i = 0; i < session.GetInputCount(); ++i) {
    if (std::string(session.GetInputNameAllocated(i, allocator).get()) == "mask") {
      throw std::runtime_error("the artifact takes the mask as an input: export it with --mask graph");
    }
  }
  const auto shape = session.GetInputTypeInfo(0).GetTensorTypeAndShapeInfo().GetShape();  // 1, 3, height, width

  const Picture picture = read_ppm(argv[2]);
  auto lr = to_planes(picture, int(shape[2]), int(shape[3]));
  auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  auto run = [&](int64_t capacity) {
    // Of `slots` only the length counts; a graph with one capacity has `lr` alone.
    std::vector<int32_t> slots(capacity);
    const int64_t length[] = {1, capacity};
    std::vector<Ort::Value> inputs;
    inputs.push_back(Ort::Value::CreateTensor<float>(memory, lr.data(), lr.size(), shape.data(), shape.size()));
    if (is_set) inputs.push_back(Ort::Value::CreateTensor<int32_t>(memory, slots.data(), slots.size(), length, 2));
    const char* in[] = {"lr", "slots"};
    const char* out[] = {"sr", "impure_tokens"};
    return session.Run(Ort::RunOptions{}, in, inputs.data(), inputs.size(), out, 2);
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
  const auto size = outputs[0].GetTensorTypeAndShapeInfo().GetShape();  // 1, 3, height * scale, width * scale
  const int scale = int(size[2] / shape[2]);
  write_ppm(argv[3], to_picture(outputs[0].GetTensorData<float>(), int(size[2]), int(size[3]), picture.height * scale,
                                picture.width * scale));
  return 0;
} catch (const std::exception& error) {
  std::cerr << error.what() << "\n";
  return 1;
}
