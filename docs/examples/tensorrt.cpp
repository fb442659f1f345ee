// Super-resolves one picture of at most one tile with an engine of `ppexport build`, in TensorRT's C++ API from 8.5 on.
// Compiled by tests/test_examples.py with the headers of TensorRT 10.14 and CUDA 13; neither linked nor run, for want
// of a GPU.
//
//   g++ -std=c++17 -O2 tensorrt.cpp -I/usr/local/cuda/include -L/usr/local/cuda/lib64 -lnvinfer -lcudart -o upscale
//   ./upscale x2_64_engine/model.engine 4096 in.ppm out.ppm
//
// The second argument is `capacities` of manifest.json, ascending, such as 1024,2048,4096: every capacity is an
// optimization profile of the engine. A network without slots has none, "", and one profile. An engine runs on the GPU
// and the TensorRT that built it, and loading one runs code in it: load only those that you built.
#include <NvInfer.h>
#include <cuda_runtime_api.h>

#include <iostream>
#include <iterator>
#include <memory>

#include "picture.h"

struct Log : nvinfer1::ILogger {
  void log(Severity severity, const char* text) noexcept override {
    if (severity <= Severity::kERROR) std::cerr << "TensorRT: " << text << "\n";
  }
};

// TensorRT returns null or false and logs why; CUDA returns a code.
template <typename T>
T need(T value, const std::string& what) {
  if (!value) throw std::runtime_error(what);
  return value;
}

void check(cudaError_t code, const std::string& what) {
  if (code != cudaSuccess) throw std::runtime_error(what + ": " + cudaGetErrorString(code));
}

struct DeviceMemory {
  explicit DeviceMemory(size_t bytes) { check(cudaMalloc(&address, bytes), "the GPU has no memory left"); }
  ~DeviceMemory() { cudaFree(address); }
  DeviceMemory(const DeviceMemory&) = delete;
  void* address = nullptr;
};

int main(int argc, char** argv) try {
  if (argc != 5) throw std::runtime_error("usage: upscale MODEL.engine CAPACITIES IN.ppm OUT.ppm");
  std::ifstream file(argv[1], std::ios::binary);
  const std::string bytes{std::istreambuf_iterator<char>(file), {}};
  if (bytes.empty()) throw std::runtime_error(std::string(argv[1]) + " cannot be read");
  const auto capacities = to_capacities(argv[2], "CAPACITIES");

  Log log;
  std::unique_ptr<nvinfer1::IRuntime> runtime(need(nvinfer1::createInferRuntime(log), "TensorRT does not start"));
  std::unique_ptr<nvinfer1::ICudaEngine> engine(need(
      runtime->deserializeCudaEngine(bytes.data(), bytes.size()),
      "the engine is of another TensorRT or GPU: run `ppexport build` on this machine"));
  const size_t profiles = std::max<size_t>(1, capacities.size());
  if (engine->getNbOptimizationProfiles() != int(profiles)) {
    throw std::runtime_error("the engine has other capacities than those named: see `capacities` of its manifest.json");
  }
  // Its content is never read, so TensorRT may have removed it; its length still chooses the profile.
  bool has_slots = false;
  for (int i = 0; i < engine->getNbIOTensors(); ++i) {
    const std::string name = engine->getIOTensorName(i);
    if (name == "mask") throw std::runtime_error("the engine takes the mask as an input: export it with --mask graph");
    has_slots |= name == "slots";
  }
  if (has_slots && capacities.empty()) throw std::runtime_error("the engine has slots: name its capacities");
  const auto small = engine->getTensorShape("lr"), large = engine->getTensorShape("sr");  // 1, 3, height, width
  const bool is_picture = small.nbDims == 4 && large.nbDims == 4 && small.d[2] > 0 && small.d[3] > 0 &&
                          large.d[2] / small.d[2] > 0 && large.d[3] == large.d[2] / small.d[2] * small.d[3];
  need(is_picture, "the engine is none of `ppexport build`: it does not make a larger picture of lr");
  const int height = int(small.d[2]), width = int(small.d[3]), scale = int(large.d[2]) / height;

  const Picture picture = read_ppm(argv[3]);
  const auto lr = to_planes(picture, height, width);
  std::vector<float> sr(lr.size() * scale * scale);
  int32_t impure = 0;
  const DeviceMemory d_lr(lr.size() * sizeof(float)), d_sr(sr.size() * sizeof(float)), d_impure(sizeof impure),
      d_slots((capacities.empty() ? 1 : capacities.back()) * sizeof(int32_t));
  std::unique_ptr<nvinfer1::IExecutionContext> context(
      need(engine->createExecutionContext(), "the GPU has no memory left for the engine"));
  cudaStream_t stream;
  check(cudaStreamCreate(&stream), "CUDA has no stream");
  auto copy = [&](void* to, const void* from, size_t length, cudaMemcpyKind way) {
    check(cudaMemcpyAsync(to, from, length, way, stream), "the copy to or from the GPU failed");
  };

  for (size_t profile = 0; profile < profiles;) {
    need(context->setOptimizationProfileAsync(int(profile), stream), "TensorRT refuses the profile");
    if (has_slots) {
      need(context->setInputShape("slots", nvinfer1::Dims2(1, capacities[profile])), "TensorRT refuses the slots");
      need(context->setTensorAddress("slots", d_slots.address), "TensorRT refuses the slots");
    }
    need(context->setTensorAddress("lr", d_lr.address), "TensorRT refuses the input");
    need(context->setTensorAddress("sr", d_sr.address), "TensorRT refuses the output");
    need(context->setTensorAddress("impure_tokens", d_impure.address), "TensorRT refuses the count");
    copy(d_lr.address, lr.data(), lr.size() * sizeof(float), cudaMemcpyHostToDevice);
    need(context->enqueueV3(stream), "TensorRT failed to run the engine");
    copy(sr.data(), d_sr.address, sr.size() * sizeof(float), cudaMemcpyDeviceToHost);
    copy(&impure, d_impure.address, sizeof impure, cudaMemcpyDeviceToHost);
    check(cudaStreamSynchronize(stream), "the run failed");
    if (capacities.empty() || impure <= capacities[profile]) break;
    // The smallest capacity is the fastest. This picture needs more: take the first that holds it.
    while (profile < profiles && impure > capacities[profile]) ++profile;
  }
  if (!capacities.empty() && impure > capacities.back()) {
    throw std::runtime_error("the picture has " + std::to_string(impure) + " impure tokens, and the engine " +
                             std::to_string(capacities.back()) + " slots: export it with full capacity");
  }
  cudaStreamDestroy(stream);
  write_ppm(argv[4],
            to_picture(sr.data(), height * scale, width * scale, picture.height * scale, picture.width * scale));
  return 0;
} catch (const std::exception& error) {
  std::cerr << error.what() << "\n";
  return 1;
}
