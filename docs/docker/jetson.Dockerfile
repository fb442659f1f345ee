# UNTESTED: a recipe for `ppexport build`, `profile` and `upscale` on a Jetson with JetPack 6. No image was built from it.
# On the board, in a folder with dist/ppexport-*.whl (`pip wheel --no-deps -w dist .` in a checkout makes it):
#   docker build -f jetson.Dockerfile -t ppexport-jetson .
# TAG is a release of L4T that is not newer than the board's (`head -1 /etc/nv_tegra_release`); NVIDIA's catalogue lists
# those of l4t-jetpack, which has CUDA, cuDNN and TensorRT.
ARG TAG=r36.4.0
FROM nvcr.io/nvidia/l4t-jetpack:${TAG}
# TensorRT's module for Python comes with JetPack's packages; `tensorrt` of PyPI is for other machines.
RUN apt-get update && apt-get install -y --no-install-recommends python3-pip python3-libnvinfer \
    && rm -rf /var/lib/apt/lists/*
COPY dist/ppexport-*.whl /dist/
# The base install, without torch and without onnx.
RUN python3 -m pip install --no-cache-dir /dist/ppexport-*.whl \
    && python3 -c "import tensorrt; print('TensorRT', tensorrt.__version__)"
WORKDIR /work
ENTRYPOINT ["ppexport"]
CMD ["--help"]
